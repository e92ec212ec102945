"""The same scripts on this machine without a scheduler, one task after another or one per GPU; run again to go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.processes import kill_group, own_group
from nnunet_ext.slurm.folder import done_marks, forget_done, unfinished
from nnunet_ext.slurm.job import Job
from nnunet_ext.slurm.pipeline import TRAIN, Pipeline, jobs
from nnunet_ext.slurm.progress import Progress, progress_line, read_progress
from nnunet_ext.slurm.status import explain

_POLL_SECONDS = 0.5
# Ctrl-C lets a training finish its batch and write a checkpoint.
_SECONDS_TO_STOP = 60.0


@dataclass
class _Running:
    job: Job
    task: int | None
    devices: str | None
    log: Path
    process: subprocess.Popen[bytes]


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES has them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def require_bash() -> None:
    """Raise a `UserError` unless the shell that runs the scripts is here."""
    if shutil.which("bash") is None:
        raise UserError("bash is not on PATH, and the steps are its scripts; install it, on Windows use WSL")


def run_local(pipeline: Pipeline, gpus: Sequence[str]) -> None:
    """Run every step that is not done; print one line per fold and per step.

    Args:
        pipeline: its scripts lie in its folder already.
        gpus: those to use; a task takes as many as the pipeline gives it. Empty on the CPU: one task at a time.

    Raises:
        UserError: a step failed. Other folds are trained all the same; running again goes on from there.
    """
    for job in jobs(pipeline):
        tasks: list[int | None]
        if job.name == TRAIN:
            states = [_progress(pipeline, number) for number in range(len(pipeline.tasks()))]
            for number, state in enumerate(states):
                if state.finished:
                    print(f"{_name(pipeline, job, number)}: finished before", flush=True)
            tasks = [number for number, state in enumerate(states) if not state.finished]
        elif not unfinished(pipeline, job):
            print(f"{job.name}: done before", flush=True)
            continue
        elif job.tasks:
            tasks = [number for number, mark in enumerate(done_marks(pipeline, job)) if not mark.is_file()]
        else:
            tasks = [None]
        if not tasks:
            continue
        forget_done(pipeline, after=job.name)
        failures = _run_tasks(pipeline, job, tasks, gpus)
        if failures:
            listed = "; ".join(failures)
            raise UserError(f"{listed}. Mend the cause and run the same command again: what is finished is kept")


def _run_tasks(pipeline: Pipeline, job: Job, tasks: Sequence[int | None], gpus: Sequence[str]) -> list[str]:
    """Run tasks of one step, as many at once as there are GPUs for; return one line per failure."""
    each = job.resources.gpus
    slots: deque[str | None] = deque(
        [",".join(gpus[start : start + each]) for start in range(0, len(gpus) - each + 1, each)] if each else [None]
    )
    waiting, running, failures = deque(tasks), list[_Running](), list[str]()
    try:
        while waiting or running:
            while waiting and slots:
                running.append(_start(pipeline, job, waiting.popleft(), slots.popleft()))
            time.sleep(_POLL_SECONDS)
            _show(pipeline, running)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                slots.append(one.devices)
                failures += _report(pipeline, one)
    finally:
        _stop(running)
    return failures


def _start(pipeline: Pipeline, job: Job, task: int | None, devices: str | None) -> _Running:
    log = Path(pipeline.folder, "logs", job.name + ("" if task is None else f"_{task}") + ".log")
    environment = dict(os.environ)
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    if not sys.stdout.isatty():
        print(f"{_name(pipeline, job, task)}: begun, log in {log}", flush=True)
    script = str(Path(pipeline.folder, f"{job.name}.sh"))
    with open(log, "ab") as file:
        # A group of its own: all of it is stopped when this command is.
        process = subprocess.Popen(
            ["bash", script, *([] if task is None else [str(task)])],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment, **own_group(),
        )  # fmt: skip
    return _Running(job, task, devices, log, process)


def _show(pipeline: Pipeline, running: Sequence[_Running]) -> None:
    """On a terminal, the state of all running tasks in one line that is written over."""
    if sys.stdout.isatty():
        line = "   ".join(_line(pipeline, one.job, one.task) for one in running)
        width = os.get_terminal_size().columns - 1
        print(f"\r{line[:width]}\x1b[K", end="", flush=True)


def _report(pipeline: Pipeline, one: _Running) -> list[str]:
    """Print the last line of a task that has ended; what failed, if it did."""
    status = one.process.returncode
    name = _name(pipeline, one.job, one.task)
    start = "\r" if sys.stdout.isatty() else ""
    end = "\x1b[K" if sys.stdout.isatty() else ""
    if status == 0:
        print(f"{start}{_line(pipeline, one.job, one.task)}{end}", flush=True)
        return []
    cause, tail = explain(one.log)
    print(f"{start}{name}: failed ({cause}); the end of {one.log}:{end}", file=sys.stderr)
    print("\n".join(f"  | {line}" for line in tail), file=sys.stderr, flush=True)
    return [f"{name} failed ({cause})"]


def _line(pipeline: Pipeline, job: Job, task: int | None) -> str:
    name = _name(pipeline, job, task)
    if job.name != TRAIN or task is None:
        marks = done_marks(pipeline, job)
        done = all(mark.is_file() for mark in (marks if task is None else [marks[task]]))
        return f"{name}: {'done' if done else 'running'}"
    return f"{name}: {progress_line(_progress(pipeline, task))}"


def _name(pipeline: Pipeline, job: Job, task: int | None) -> str:
    if task is None:
        return job.name
    run, fold = pipeline.tasks()[task] if job.name == TRAIN else (pipeline.runs[task], "")
    return f"{run.trainer} {run.plans}" + (f" fold {fold}" if fold else f" {job.name}")


def _progress(pipeline: Pipeline, task: int) -> Progress:
    run, fold = pipeline.tasks()[task]
    return read_progress(pipeline.result_folder(run) / f"fold_{fold}")


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        # To the script alone, which hands it to the training: workers would die of it and take the training with them.
        one.process.terminate()
    end = time.monotonic() + _SECONDS_TO_STOP
    for one in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(timeout=max(end - time.monotonic(), 0))
        kill_group(one.process)
        one.process.wait()
