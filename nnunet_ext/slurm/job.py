"""A batch job as a frozen description, and the text of its script: nothing here runs or writes anything.

A script has three parts: the scheduler's directives (`nnunet_ext.slurm.dialects`), an environment that fits the
allocation, and a body of the commands a user would type. In the body `$task` is the index in the array and `$cpus` the
processors of the allocation, whatever the scheduler calls them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from nnunet_ext import __version__
from nnunet_ext.errors import UserError

_MEMORY = re.compile(r"(\d{1,15})([KMGT]?)B?", re.IGNORECASE)
_MEBIBYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Resources:
    """What one task asks the scheduler for.

    Attributes:
        cpus: processors.
        gpus: graphics cards; 0 trains on the processors.
        memory_mib: memory in MiB.
        minutes: time limit.
        partition: partition or queue; None leaves it to the cluster.
        account: account or project to charge.
        mail_user: address, and `mail_type` when to write to it, in the scheduler's own words.
        mail_type: e.g. END,FAIL.
        extra: further options for the scheduler, copied as they are, one per line.
    """

    cpus: int = 12
    gpus: int = 1
    memory_mib: int = 64 * 1024
    minutes: int = 24 * 60
    partition: str | None = None
    account: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One step of a pipeline.

    Attributes:
        name: of the script, e.g. 2_train.
        label: of the job in the queue.
        purpose: one line for the head of the script.
        resources: per task.
        environment: variables to export, in order; values are quoted.
        path: folder of nnU-Net's and this package's commands.
        folder: of scripts and logs.
        body: shell lines.
        setup: shell lines before everything else, such as `module load cuda`.
        tasks: size of the array; None for a single job.
        at_once: tasks that may run at the same time; None leaves it to the scheduler.
        warn_seconds: SIGUSR1 so long before the time limit; None for jobs that cannot use it.
        threaded: one process computes on all processors: training and prediction without GPU.
    """

    name: str
    label: str
    purpose: str
    resources: Resources
    environment: tuple[tuple[str, str], ...]
    path: str
    folder: str
    body: str
    setup: tuple[str, ...] = ()
    tasks: int | None = None
    at_once: int | None = None
    warn_seconds: int | None = None
    threaded: bool = False


def preamble(job: Job, task: str, cpus: str) -> list[str]:
    """Shell lines between directives and body.

    Args:
        job: the job.
        task: shell word for the index in the array, counted from 0.
        cpus: shell word for the processors of the allocation.
    """
    lines = ["set -uo pipefail" if job.warn_seconds else "set -euo pipefail", *job.setup]
    lines += [f"folder={shlex.quote(job.folder)}"] if "$folder" in job.body else []
    lines += [f"task={task}"] if job.tasks else []
    lines += [f'export PATH={shlex.quote(job.path)}:"$PATH" PYTHONUNBUFFERED=1']
    lines += [f"cpus={cpus}", ""]
    lines += [
        "# nnU-Net would count the cores of the node; these are the allocation's.",
        *_workers(job),
        "# Compiled kernels belong on the node's own disk.",
        'cache="${TMPDIR:-/tmp}/nnunet_ext-cache-$(id -u)"',
        'export TORCHINDUCTOR_CACHE_DIR="$cache/inductor" TRITON_CACHE_DIR="$cache/triton"',
        'export NUMBA_CACHE_DIR="$cache/numba" TORCHINDUCTOR_COMPILE_THREADS=1',
    ]
    # Last, so that what the user had set when the scripts were written wins.
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment]
    return lines


def _workers(job: Job) -> list[str]:
    # One process per GPU, each with its own augmentation workers.
    share = "cpus" if job.resources.gpus < 2 else f"cpus / {job.resources.gpus}"
    threads = '"$cpus"' if job.threaded else "1"
    workers = "$((cpus > 2 ? 2 : 1))" if job.threaded else f"$(({share} > 1 ? {share} - 1 : 1))"
    return [
        f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}",
        f"export nnUNet_n_proc_DA={workers}",
        "export nnUNet_def_n_proc=$((cpus < 8 ? cpus : 8))",
    ]


def within_quotes(text: str) -> str:
    """`text` for a place between double quotes, where the shell would expand $, ` and \\."""
    return re.sub(r'([\\"$`])', r"\\\1", text)


def headline(job: Job) -> str:
    """The comment that begins every script."""
    return f"# {' '.join(job.purpose.split())}\n# Written by nnunet_ext {__version__}; read it, edit it, keep it."


def parse_memory(text: str) -> int:
    """MiB of a size such as 64G, 64GB, 65536M or 65536 (MiB, as sbatch has it).

    Raises:
        UserError: it is no such size.
    """
    match = _MEMORY.fullmatch(text.strip())
    mebibytes = int(int(match[1]) * _MEBIBYTES[match[2].upper()]) if match else 0
    if mebibytes < 1:
        raise UserError(f"--mem {text} is no amount of memory; expected such as 64G or 65536M")
    return mebibytes


def parse_minutes(text: str) -> int:
    """Minutes of a time as sbatch takes it: MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; rounded up.

    Raises:
        UserError: it is no such time.
    """
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text.strip())
    if match is None:
        raise UserError(f"--time {text} is no time limit; expected such as 24:00:00, 2-00:00:00 or 90 (minutes)")
    first, second, third = int(match[2]), int(match[3] or 0), int(match[4] or 0)
    if match[1] is not None:
        seconds = int(match[1]) * 86400 + first * 3600 + second * 60 + third
    elif match[4] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 60:
        raise UserError(f"--time {text} is less than a minute; expected such as 24:00:00")
    return -(-seconds // 60)
