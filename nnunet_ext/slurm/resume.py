"""Submitting what is unfinished again: folds that failed, and the steps after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.slurm.folder import SUBMITTED, forget_done, submissions, unfinished
from nnunet_ext.slurm.pipeline import TRAIN, Pipeline, jobs
from nnunet_ext.slurm.progress import read_progress
from nnunet_ext.slurm.queue import cancel, queued, submit


@dataclass(frozen=True)
class Submit:
    """One job to submit.

    Attributes:
        step: name of the step, and of its script.
        tasks: which of its array; None for a single job.
        at_once: how many of them at the same time; None leaves it to Slurm.
        after: jobs and tasks in the queue that must end well before.
        after_previous: whether the submission before this one must end well, too.
    """

    step: str
    tasks: tuple[int, ...] | None
    at_once: int | None
    after: tuple[str, ...]
    after_previous: bool


@dataclass(frozen=True)
class Plan:
    """What `resume` is going to do: queued jobs to cancel, as they wait for what has failed, and jobs to submit."""

    cancel: tuple[str, ...]
    submit: tuple[Submit, ...]


def plan_resume(pipeline: Pipeline) -> Plan:
    """Decide what to submit. What is in the queue stays there, except steps that must wait for new jobs.

    Raises:
        UserError: Slurm does not answer.
    """
    submitted = submissions(pipeline)
    queue = queued({entry.job_id for entry in submitted})
    step_of = {entry.job_id: entry.step for entry in submitted}
    cancelled: list[str] = []
    planned: list[Submit] = []
    after: tuple[str, ...] = ()
    for job in jobs(pipeline):
        active = [q for q in queue if step_of[q.job_id] == job.name]
        if job.name == TRAIN:
            busy = {q.task for q in active}
            todo = tuple(
                number
                for number, (run, fold) in enumerate(pipeline.tasks())
                if number not in busy and not read_progress(pipeline.result_folder(run) / f"fold_{fold}").finished
            )
            if todo:
                planned.append(Submit(job.name, todo, job.at_once, after, bool(planned)))
            after = tuple(f"{q.job_id}_{q.task}" for q in active)
            continue
        if active and not planned:
            after = tuple(sorted({q.job_id for q in active}))
            continue
        if active or planned or unfinished(pipeline, job):
            cancelled += sorted({q.job_id for q in active})
            tasks = tuple(range(job.tasks)) if job.tasks else None
            planned.append(Submit(job.name, tasks, None, after, bool(planned)))
        after = ()
    return Plan(tuple(cancelled), tuple(planned))


def command(step: Submit, previous: str | None, options: Sequence[str]) -> list[str]:
    """The arguments of sbatch before the script's name."""
    arguments = []
    if step.tasks is not None:
        throttle = f"%{step.at_once}" if step.at_once else ""
        arguments.append(f"--array={','.join(map(str, step.tasks))}{throttle}")
    after = [*step.after, *([previous] if previous and step.after_previous else [])]
    if after:
        arguments += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    return [*arguments, *options]


def resume(pipeline: Pipeline, plan: Plan, options: Sequence[str] = ()) -> list[str]:
    """Carry out the plan; return the lines added to jobs.txt.

    Args:
        pipeline: whose scripts are submitted, as they lie in the folder, edited or not.
        plan: from `plan_resume`.
        options: for sbatch, e.g. --mem=128G; they win over the scripts.

    Raises:
        UserError: Slurm refuses.
    """
    cancel(plan.cancel)
    lines = []
    previous: str | None = None
    for step in plan.submit:
        previous = submit(f"{step.step}.sh", pipeline.folder, command(step, previous, options))
        tasks = "-" if step.tasks is None else ",".join(map(str, step.tasks))
        lines.append(f"{step.step} {previous} {tasks}")
        # At once: a job nobody remembers cannot be found again.
        with open(Path(pipeline.folder, SUBMITTED), "a", encoding="utf-8") as file:
            file.write(lines[-1] + "\n")
    if plan.submit:
        forget_done(pipeline, after=plan.submit[0].step)
    return lines
