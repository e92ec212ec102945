"""Slurm's own commands: what is in the queue, how jobs ended, submitting and cancelling."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError


@dataclass(frozen=True)
class Queued:
    """A job or array task that Slurm still works on.

    Attributes:
        job_id: without the task.
        task: index in the array; None for a single job.
        state: Slurm's word, e.g. PENDING or RUNNING.
        reason: why it waits; "None" when it does not.
    """

    job_id: str
    task: int | None
    state: str
    reason: str


def queued(job_ids: set[str]) -> list[Queued]:
    """Which of these jobs are in the queue, array tasks one by one.

    Raises:
        UserError: there is no Slurm here, or it does not answer.
    """
    if not job_ids:
        return []
    # Asking for the jobs by number fails as soon as Slurm has forgotten one of them.
    text = _output("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i|%T|%r")
    found = []
    for line in text.splitlines():
        name, state, reason = (line.split("|") + ["", ""])[:3]
        job_id, _, task = name.strip().partition("_")
        # squeue also lists what has just ended.
        if job_id in job_ids and state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
            found.append(Queued(job_id, decimal(task), state, reason))
    return found


def ended(job_id: str, task: int | None) -> str | None:
    """How a job ended in Slurm's words, e.g. "OUT_OF_MEMORY 0:125"; None if Slurm has forgotten it.

    Asks the accounting where a cluster has one, else the controller, which forgets after some minutes.
    """
    name = job_id if task is None else f"{job_id}_{task}"
    done = _try("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", name, "--format=State,ExitCode")
    if done and (lines := done.strip().splitlines()):
        return lines[-1].replace("|", " ")
    done = _try("scontrol", "show", "job", "--oneliner", name)
    if not done:
        return None
    state, code = re.search(r"JobState=(\S+)", done), re.search(r"ExitCode=(\S+)", done)
    return f"{state[1]} {code[1]}" if state and code else None


def submit(script: str, folder: str, options: Sequence[str]) -> str:
    """Submit a script and return the job's number.

    Raises:
        UserError: sbatch refuses; the message has its words.
    """
    return _output("sbatch", "--parsable", *options, script, folder=folder).strip().split(";")[0]


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs.

    Raises:
        UserError: scancel refuses.
    """
    if job_ids:
        _output("scancel", *job_ids)


def require_slurm() -> None:
    """Raise a `UserError` unless Slurm's commands are here."""
    for name in ("sbatch", "squeue", "scontrol"):
        if shutil.which(name) is None:
            raise UserError(
                f"{name} is not on PATH: this machine is no login node of a Slurm cluster; use --local here"
            )


def _output(*command: str, folder: str | None = None) -> str:
    require_slurm()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise UserError(f"{command[0]} failed: {words}")
    return done.stdout


def _try(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
