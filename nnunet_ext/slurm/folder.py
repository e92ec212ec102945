"""The folder of a pipeline: pipeline.json, scripts, logs, done, jobs.txt. Edited scripts are never replaced."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.files import json_text, write_text
from nnunet_ext.json_object import JsonObject
from nnunet_ext.slurm.dialects import DIALECTS, script, submit_script
from nnunet_ext.slurm.job import Job
from nnunet_ext.slurm.pipeline import PREDICT, TRAIN, Pipeline, jobs

DESCRIPTION = "pipeline.json"
SUBMITTED = "jobs.txt"
_LARGEST_ARRAY = 100_000


@dataclass(frozen=True)
class Submission:
    """One line of jobs.txt: a step, the scheduler's number for it, and its tasks (None: not an array)."""

    step: str
    job_id: str
    tasks: tuple[int, ...] | None


def files(pipeline: Pipeline) -> dict[str, str]:
    """Name -> text of everything `write` writes."""
    steps = jobs(pipeline)
    texts = {DESCRIPTION: json_text(pipeline.to_json())}
    texts |= {f"{job.name}.sh": script(job, pipeline.scheduler) for job in steps}
    if DIALECTS[pipeline.scheduler].submit is not None:
        texts["submit.sh"] = submit_script(steps, pipeline.scheduler)
    return texts


def write(pipeline: Pipeline, overwrite: bool = False) -> list[Path]:
    """Write description and scripts; return their paths.

    Raises:
        UserError: a file is there with other content, edited or of another pipeline, and `overwrite` is not given.
    """
    folder = Path(pipeline.folder)
    texts = files(pipeline)
    for name, text in texts.items():
        path = folder / name
        if not overwrite and path.is_file() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path} exists with other content, edited or of another pipeline; choose another folder with -o, or "
                "replace it with --overwrite"
            )
    for name, text in texts.items():
        write_text(folder / name, text)
        if name.endswith(".sh"):
            (folder / name).chmod(0o777 & ~_umask())
    for name in ("logs", "done"):
        (folder / name).mkdir(exist_ok=True)
    return [folder / name for name in texts]


def load(folder: str | os.PathLike[str]) -> Pipeline:
    """Read the pipeline of a folder.

    Raises:
        UserError: there is none.
    """
    path = Path(folder, DESCRIPTION)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder `nnunet_ext slurm` wrote its scripts into")
    pipeline = Pipeline.from_json(JsonObject.read(path, "write it again with nnunet_ext slurm"))
    if pipeline.scheduler not in DIALECTS:
        raise UserError(f"{path} is for the scheduler {pipeline.scheduler}; expected {', '.join(DIALECTS)}")
    return pipeline


def submissions(pipeline: Pipeline) -> list[Submission]:
    """What was submitted, oldest first."""
    path = Path(pipeline.folder, SUBMITTED)
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        try:
            step, job_id, tasks = words
            found.append(Submission(step, job_id, None if tasks == "-" else expand(tasks)))
        except ValueError:
            raise UserError(f"{path}, line {number}: expected STEP JOB TASKS, found {line!r}; mend the line") from None
    return found


def expand(tasks: str) -> tuple[int, ...]:
    """The numbers of a list such as 0-3,7."""
    numbers: list[int] = []
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        part_of_array = range(int(first), int(last or first) + 1)
        if len(part_of_array) > _LARGEST_ARRAY:
            raise ValueError(f"{part} are more tasks than a scheduler takes")
        numbers += part_of_array
    return tuple(numbers)


def done_marks(pipeline: Pipeline, job: Job) -> list[Path]:
    """The files that say a step is done: one, or one per task. Training has none: its results say it."""
    assert job.name != TRAIN
    names = [f"{PREDICT}_{task}" for task in range(job.tasks)] if job.tasks else [job.name]
    return [Path(pipeline.folder, "done", name) for name in names]


def unfinished(pipeline: Pipeline, job: Job) -> bool:
    """Whether a step other than training has something left to do."""
    return not all(mark.is_file() for mark in done_marks(pipeline, job))


def forget_done(pipeline: Pipeline, after: str) -> None:
    """Remove the marks of all steps after `after`: what they were made from has changed."""
    steps = jobs(pipeline)
    names = [job.name for job in steps]
    for job in steps[names.index(after) + 1 :]:
        if job.name != TRAIN:
            for mark in done_marks(pipeline, job):
                mark.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
