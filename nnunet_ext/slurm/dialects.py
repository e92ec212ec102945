"""The same job in the words of each scheduler.

Slurm's is tested against a real Slurm, `local` runs in the same tests. LSF's and PBS's texts follow their manuals (IBM
Spectrum LSF 10.1, OpenPBS 20) and are compared with golden files; **they have not been run**.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from nnunet_ext.errors import UsageError
from nnunet_ext.slurm.job import Job, headline, preamble


@dataclass(frozen=True)
class Dialect:
    """How one scheduler says things.

    Attributes:
        directives: the comment lines the scheduler reads.
        task: shell word for the array index, counted from 0.
        cpus: shell word for the allocated processors; empty where none are allocated.
        warning: shell lines that arrange for SIGUSR1 where the scheduler sends none.
        requeue: shell lines that put the running task back into the queue.
        submit: shell lines of submit.sh: job and the variables that hold the identifiers it waits for -> text that
            sets the variable named like the job. None where there is nothing to submit to.
    """

    directives: Callable[[Job], list[str]]
    task: str
    cpus: str
    warning: Callable[[Job], list[str]]
    requeue: tuple[str, ...]
    submit: Callable[[Job, str | None], list[str]] | None


def script(job: Job, scheduler: str) -> str:
    """The whole batch script of a job.

    Args:
        job: what to do.
        scheduler: a key of `DIALECTS`.
    """
    dialect = DIALECTS[scheduler]
    body = job.body.replace("@requeue@", "\n  ".join(dialect.requeue))
    warning = dialect.warning(job) if job.warn_seconds else []
    parts = [
        "#!/usr/bin/env bash",
        headline(job),
        *dialect.directives(job),
        "",
        *preamble(job, dialect.task, dialect.cpus or str(job.resources.cpus)),
        "",
        *warning,
        body.strip("\n"),
    ]
    return "\n".join(parts) + "\n"


def submit_script(jobs: list[Job], scheduler: str) -> str:
    """The script that submits all jobs, each after the one before it."""
    submit = DIALECTS[scheduler].submit
    assert submit is not None, scheduler
    lines = [
        "#!/usr/bin/env bash",
        "# Submits every step; each waits for all tasks of the step before it. jobs.txt keeps step, job and tasks.",
        "set -euo pipefail",
        f"cd {shlex.quote(jobs[0].folder)}",
        'mkdir -p logs "done" && rm -f done/*',
    ]
    before: str | None = None
    for job in jobs:
        lines += ["", *submit(job, before)]
        before = variable(job)
        tasks = f"0-{job.tasks - 1}" if job.tasks else "-"
        lines.append(f'echo "{job.name} ${before} {tasks}" | tee -a jobs.txt')
    return "\n".join(lines) + "\n"


def variable(job: Job) -> str:
    """The shell variable of submit.sh with the job's identifier."""
    return job.name.split("_", 1)[1]


def _log(job: Job, scheduler: str) -> str:
    """Where a task's output goes, in the scheduler's placeholders."""
    job_id, task = {"slurm": ("%A" if job.tasks else "%j", "%a"), "lsf": ("%J", "%I")}.get(scheduler, ("", ""))
    return word(f"{_logs(job)}{job.name}_{job_id}" + (f"_{task}" if job.tasks else "") + ".log")


def _logs(job: Job) -> str:
    """The folder of the logs: relative to that of the jobs, where submit.sh is, if a scheduler could misread the name.

    Percent signs and backslashes are placeholders and escapes there; quotes and # have no spelling all agree on.
    """
    return "logs/" if re.search(r"""[%\\"'#^]""", job.folder) else f"{job.folder}/logs/"


def word(text: str) -> str:
    """`text` as one word of a scheduler's comment line, which is split at blanks outside quotes and ends at a #.

    Raises:
        UsageError: it has both kinds of quotes or a backslash, which each scheduler reads in its own way.
    """
    if text and not re.search(r"""[\s"'#\\]""", text):
        return text
    quote = next((mark for mark in "\"'" if mark not in text), None)
    if quote is None or "\\" in text:
        raise UsageError(f"{text} has a backslash or both kinds of quotes, which schedulers read differently; leave it")
    return f"{quote}{text}{quote}"


def _value(option: str, text: str | None) -> list[str]:
    """An option with its value, if there is one.

    Raises:
        UsageError: the value would be taken for another option, or see `word`.
    """
    if not text:
        return []
    if text.startswith("-"):
        raise UsageError(f"{option.strip('= ')} {text} begins with a dash, as options do; expected a name")
    return [f"{option}{word(text)}"]


# Slurm -----------------------------------------------------------------------------------------------------------


def _slurm(job: Job) -> list[str]:
    resources = job.resources
    throttle = f"%{job.at_once}" if job.at_once else ""
    options = [
        f"--job-name={word(job.label)}",
        f"--array=0-{job.tasks - 1}{throttle}" if job.tasks else "",
        f"--output={_log(job, 'slurm')}",
        "--open-mode=append",
        "--requeue",
        # To the batch script only: nnU-Net's workers would die of it.
        f"--signal=B:USR1@{job.warn_seconds}" if job.warn_seconds else "",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        f"--gres=gpu:{resources.gpus}" if resources.gpus else "",
        f"--mem={resources.memory_mib}M",
        f"--time={resources.minutes // 60:02d}:{resources.minutes % 60:02d}:00",
        *_value("--partition=", resources.partition),
        *_value("--account=", resources.account),
        *_value("--mail-user=", resources.mail_user),
        *_value("--mail-type=", resources.mail_type),
        *resources.extra,
    ]
    return [f"#SBATCH {option}" for option in options if option]


def _sbatch(job: Job, before: str | None) -> list[str]:
    # A step whose predecessor failed is cancelled instead of waiting for ever; `resume` submits it again.
    after = f'--dependency=afterok:"${before}" --kill-on-invalid-dep=yes ' if before else ""
    name = variable(job)
    # --parsable adds ";CLUSTER" where there are several.
    return [f"{name}=$(sbatch --parsable {after}{job.name}.sh)", f"{name}=${{{name}%%;*}}"]


# LSF -------------------------------------------------------------------------------------------------------------


def _lsf(job: Job) -> list[str]:
    resources = job.resources
    throttle = f"%{job.at_once}" if job.at_once else ""
    options = [
        f'-J "{job.label}[1-{job.tasks}]{throttle}"' if job.tasks else f"-J {word(job.label)}",
        f"-o {_log(job, 'lsf')}",
        "-r",
        # LSF itself queues a task again that ends with the reserved status, and warns before the time limit.
        "-Q 85" if job.warn_seconds else "",
        f"-wa USR1 -wt {max(job.warn_seconds // 60, 1)}" if job.warn_seconds else "",
        f"-n {resources.cpus}",
        f'-R "span[hosts=1] rusage[mem={resources.memory_mib}MB/host]"',
        f"-M {resources.memory_mib}MB",
        f'-gpu "num={resources.gpus}:mode=exclusive_process"' if resources.gpus else "",
        f"-W {resources.minutes // 60:02d}:{resources.minutes % 60:02d}",
        *_value("-q ", resources.partition),
        *_value("-P ", resources.account),
        *_value("-u ", resources.mail_user),
        "-N" if resources.mail_type else "",
        *resources.extra,
    ]
    return [f"#BSUB {option}" for option in options if option]


def _bsub(job: Job, before: str | None) -> list[str]:
    after = f'-w "done(${before})" -ti ' if before else ""
    # "Job <123> is submitted to queue <normal>."
    return [f"{variable(job)}=$(bsub {after}< {job.name}.sh | sed -n 's/^Job <\\([0-9]*\\)>.*/\\1/p')"]


# PBS -------------------------------------------------------------------------------------------------------------


def _pbs(job: Job) -> list[str]:
    resources = job.resources
    throttle = f"%{job.at_once}" if job.at_once else ""
    gpus = f":ngpus={resources.gpus}" if resources.gpus else ""
    options = [
        f"-N nn_{job.name}",  # older versions allow 15 characters
        f"-J 0-{job.tasks - 1}{throttle}" if job.tasks else "",
        "-j oe",
        f"-o {word(_logs(job))}",
        "-r y",
        f"-l select=1:ncpus={resources.cpus}{gpus}:mem={resources.memory_mib}mb",
        f"-l walltime={resources.minutes // 60:02d}:{resources.minutes % 60:02d}:00",
        *_value("-q ", resources.partition),
        *_value("-A ", resources.account),
        *_value("-M ", resources.mail_user),
        *_value("-m ", resources.mail_type),
        *resources.extra,
    ]
    return [f"#PBS {option}" for option in options if option]


def _pbs_warning(job: Job) -> list[str]:
    assert job.warn_seconds is not None
    delay = max(job.resources.minutes * 60 - job.warn_seconds, 30)
    return [
        "# PBS gives no warning before the time limit, so the script gives it to itself.",
        f"{{ sleep {delay} && kill -USR1 $$; }} &",
        "alarm=$!",
        "trap 'pkill -P \"$alarm\"' EXIT",
        "",
    ]


def _qsub(job: Job, before: str | None) -> list[str]:
    after = f'-W depend=afterok:"${before}" ' if before else ""
    return [f"{variable(job)}=$(qsub {after}{job.name}.sh)"]


# No scheduler ----------------------------------------------------------------------------------------------------


def _nothing(job: Job) -> list[str]:
    return []


DIALECTS = {
    "slurm": Dialect(
        _slurm,
        "$SLURM_ARRAY_TASK_ID",
        '"${SLURM_CPUS_PER_TASK:-1}"',
        _nothing,
        (
            '[ "${SLURM_RESTART_COUNT:-0}" -lt 200 ] || { echo "queued 200 times already"; exit "$status"; }',
            'exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        ),
        _sbatch,
    ),
    "lsf": Dialect(_lsf, "$((LSB_JOBINDEX - 1))", '"${LSB_DJOB_NUMPROC:-1}"', _nothing, ("exit 85",), _bsub),
    "pbs": Dialect(
        _pbs,
        "$PBS_ARRAY_INDEX",
        '"${NCPUS:-1}"',
        _pbs_warning,
        ('echo "submit this script again; what is finished is skipped"', "exit 85"),
        _qsub,
    ),
    # `bash 2_train.sh 3` runs the fourth task.
    "local": Dialect(_nothing, '"$1"', "", _nothing, ("exit 85",), None),
}
