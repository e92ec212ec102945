"""What has become of a pipeline: the queue, the run folders and the logs, joined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.slurm.folder import Submission, submissions, unfinished
from nnunet_ext.slurm.pipeline import TRAIN, Pipeline, Training, jobs
from nnunet_ext.slurm.progress import Progress, read_progress
from nnunet_ext.slurm.queue import Queued, ended, queued

_LAST_LINES = 6
# What to look for in the log of a task that failed, most telling first.
_CAUSES = (
    (r"exceeded (?:job |step )?memory limit|oom[-_ ]?kill|out[-_ ]of[-_ ]memory handler|OUT_OF_MEMORY",
     "out of memory; resume with --sbatch=--mem=MORE"),
    (r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError",
     "out of GPU memory; take a larger GPU or plans with a smaller patch"),
    (r"DUE TO TIME LIMIT", "time limit; resume with --sbatch=--time=MORE"),
    (r"DUE TO NODE FAILURE", "node failure; resume"),
    (r"CANCELLED AT", "cancelled; resume"),
)  # fmt: skip
_ERROR = re.compile(r"^(nnunet_ext[\w ]*: .+|(?:[\w.]+)(?:Error|Exception): .+)$", re.MULTILINE)


@dataclass(frozen=True)
class ArrayTask:
    """One fold of one run.

    Attributes:
        state: finished, running, pending, failed, stopped (begun, and nobody works on it) or waiting; without Slurm
            begun stands for all between waiting and finished.
        detail: why it is pending or has failed.
        job: Slurm's name of the latest job, e.g. 123_4.
        log: of that job, if it exists.
        tail: the log's last lines, where the task has failed.
    """

    number: int
    run: Training
    fold: str
    progress: Progress
    state: str
    detail: str = ""
    job: str | None = None
    log: Path | None = None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step other than training; fields as of `ArrayTask`."""

    name: str
    state: str
    detail: str = ""
    job: str | None = None
    log: Path | None = None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """Everything `nnunet_ext slurm status` shows."""

    pipeline: Pipeline
    tasks: tuple[ArrayTask, ...]
    steps: tuple[Step, ...]

    @property
    def parts(self) -> list[ArrayTask | Step]:
        """Folds and other steps together."""
        return [*self.tasks, *self.steps]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(part.state == "finished" for part in self.parts)


def read_status(pipeline: Pipeline) -> Status:
    """Ask Slurm, where the pipeline is Slurm's, and read the run folders.

    Raises:
        UserError: Slurm does not answer.
    """
    submitted = submissions(pipeline)
    queue = queued({entry.job_id for entry in submitted}) if pipeline.scheduler == "slurm" else []
    tasks = tuple(
        _task(pipeline, number, run, fold, submitted, queue) for number, (run, fold) in enumerate(pipeline.tasks())
    )
    steps = []
    for job in jobs(pipeline):
        if job.name != TRAIN:
            done = not unfinished(pipeline, job)
            steps.append(Step(job.name, *_state(pipeline, job.name, None, done, False, submitted, queue)))
    return Status(pipeline, tasks, tuple(steps))


def _task(
    pipeline: Pipeline, number: int, run: Training, fold: str, submitted: list[Submission], queue: list[Queued]
) -> ArrayTask:
    progress = read_progress(pipeline.result_folder(run) / f"fold_{fold}")
    begun = progress.total is not None
    state = _state(pipeline, TRAIN, number, progress.finished, begun, submitted, queue)
    return ArrayTask(number, run, fold, progress, *state)


def _state(
    pipeline: Pipeline,
    step: str,
    task: int | None,
    done: bool,
    begun: bool,
    submitted: list[Submission],
    queue: list[Queued],
) -> tuple[str, str, str | None, Path | None, tuple[str, ...]]:
    """State, detail, job, log and tail of one task, or of a whole step when `task` is None."""
    mine = [s for s in submitted if s.step == step and (task is None or s.tasks is None or task in s.tasks)]
    latest = mine[-1] if mine else None
    active = [q for q in queue if latest and q.job_id == latest.job_id and task in (None, q.task)]
    job = None if latest is None else latest.job_id if task is None else f"{latest.job_id}_{task}"
    log = _log(pipeline, step, latest, task)
    if active:
        running = [q for q in active if q.state != "PENDING"]
        if running:
            return "running", "", job, log, ()
        return "pending", active[0].reason, job, log, ()
    if done:
        return "finished", "", job, log, ()
    if pipeline.scheduler != "slurm":
        # Nobody is asked whether it still runs; only a training says how it ended.
        cause, tail = explain(log)
        if re.search(r"ended with status (?!0\b|85\b)\d", _last_attempt(log)):
            return "failed", cause, job, log, tail
        return ("begun" if begun or log is not None else "waiting"), "", job, log, ()
    if log is None and latest is None:
        return ("stopped" if begun else "waiting"), "", job, log, ()
    how = None
    if latest is not None:
        how = ended(latest.job_id, task if latest.tasks is not None and task is not None else None)
    if log is None and not (how or "").startswith(("FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "BOOT_FAIL")):
        return "waiting", "", job, log, ()  # never started: cancelled with the step before it
    cause, tail = explain(log, how)
    return "failed", cause, job, log, tail


def explain(log: Path | None, how: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Why a task failed, and the last lines of its log.

    Args:
        log: of the task; None if there is none.
        how: the scheduler's words for it, if it has any.
    """
    text = _last_attempt(log)
    return _cause(text, how), tuple(line for line in text.splitlines() if line.strip())[-_LAST_LINES:]


def _log(pipeline: Pipeline, step: str, latest: Submission | None, task: int | None) -> Path | None:
    """The newest log of a task or step."""
    stem = step if latest is None else f"{step}_{latest.job_id}"
    index = "" if task is None else f"_{task + 1 if pipeline.scheduler == 'lsf' else task}"
    pattern = stem + index + ("*.log" if task is None else ".log")
    logs = sorted(Path(pipeline.folder, "logs").glob(pattern), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


def _last_attempt(log: Path | None) -> str:
    """What the log says since the job was last started."""
    if log is None:
        return ""
    text = log.read_text(encoding="utf-8", errors="replace")
    starts = [
        match.start() for match in re.finditer(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ \w+ fold \w+ on ", text, re.M)
    ]
    return text[starts[-1] :] if starts else text


def _cause(text: str, how: str | None) -> str:
    for pattern, cause in _CAUSES:
        if re.search(pattern, f"{text}\n{how or ''}", re.IGNORECASE):
            return cause
    errors = _ERROR.findall(text)
    if errors:
        return errors[0]
    if status := re.search(r"ended with status (\d+)", text):
        number = int(status[1])
        return f"killed by signal {number - 128}" if number > 128 else f"exit status {number}"
    return (how or "ended without a word").lower()
