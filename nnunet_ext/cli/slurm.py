"""A whole cross-validation as batch jobs that go on after time limits and preemption, or on this machine.

Writes readable scripts for plan/preprocess -> train folds x trainers (an array) -> best configuration and
post-processing -> predict imagesTs -> evaluate -> report, each waiting for the one before, and shows what they will do.
Read them, edit them, then submit. --submit does it at once; --dry-run shows them and writes nothing.

examples:
  nnunet_ext slurm -d 4 -tr nnUNetTrainerSegMamba nnUNetTrainerExt -c 3d_fullres --time 24:00:00 --partition gpu
  nnunet_ext slurm -d 4 -tr nnUNetTrainerExt -c 3d_fullres --scratch '$TMPDIR' --at-once 4 --submit
  nnunet_ext slurm -d 4 -tr nnUNetTrainerExt -c 3d_fullres --local          # no scheduler; run again to go on
  nnunet_ext slurm status slurm_Dataset004_Hippocampus_3d_fullres
  nnunet_ext slurm resume slurm_Dataset004_Hippocampus_3d_fullres

  status   state of every fold: queue, epoch, EMA Dice, time left, why it failed
  resume   submit what is unfinished again
  prepare, select: steps the scripts call; each has its own --help

Settings such as NNUNET_EXT_EPOCHS and nnUNet_n_proc_DA that are set now are written into the scripts and listed; what
shortens the training is asked about first. Folds that are finished are skipped, and refused if they were trained by
another schedule. The same scripts for LSF and PBS (--scheduler) have not been run. docs/cluster.md has the whole path.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
from pathlib import Path

from nnunet_ext.cli.numbers import at_least_one
from nnunet_ext.cli.running import stop_on_signals
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UsageError, UserError
from nnunet_ext.machine import available_cores
from nnunet_ext.slurm.compose import carried, compose, shortening, split_options
from nnunet_ext.slurm.dialects import DIALECTS, word
from nnunet_ext.slurm.folder import files, submissions, write
from nnunet_ext.slurm.job import Resources, parse_memory, parse_minutes
from nnunet_ext.slurm.pipeline import Pipeline, Small, jobs

COMMANDS = {
    "status": "state of every fold",
    "resume": "submit what is unfinished again",
    "prepare": "plan, preprocess and split what is missing",
    "select": "best run and post-processing",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument("-d", "--dataset", help="number or name, such as 4 or Dataset004_Hippocampus")
    what.add_argument("-tr", "--trainers", nargs="+", metavar="TRAINER", help="one or several to compare")
    what.add_argument("-c", "--configuration", help="such as 3d_fullres")
    what.add_argument(
        "-p", "--plans", nargs="+", default=["nnUNetPlans"], metavar="PLANS",
        help="one for all trainers, or one for each (default: nnUNetPlans)",
    )  # fmt: skip
    what.add_argument("-f", "--folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="or all")
    what.add_argument("-i", "--images", type=Path, metavar="FOLDER", help="images to predict (default: imagesTs)")
    what.add_argument("-r", "--references", type=Path, metavar="FOLDER", help="their label maps (default: labelsTs)")
    job = parser.add_argument_group("what one training job gets")
    job.add_argument("--gpus", type=_count, metavar="N", help="more than one: -num_gpus; 0: CPU (default: 1)")
    job.add_argument("--cpus", type=at_least_one, metavar="N", help="default: 12; with --local those that are there")
    job.add_argument("--mem", default="64G", metavar="SIZE", help="default: %(default)s")
    job.add_argument("--time", default="24:00:00", metavar="LIMIT", help="default: %(default)s; longer runs continue")
    job.add_argument("--partition", metavar="NAME")
    job.add_argument("--cpu-partition", metavar="NAME", help="for the steps without GPU (default: --partition)")
    job.add_argument("--small-cpus", type=at_least_one, metavar="N", help="for them (default: 4, to prepare 8)")
    job.add_argument("--small-mem", metavar="SIZE", help="for them (default: 16G, to prepare 32G; at most --mem)")
    job.add_argument("--small-time", metavar="LIMIT", help="for them (default: 2 h, to prepare 8 h; at most --time)")
    job.add_argument("--account", metavar="NAME")
    job.add_argument("--mail-user", metavar="ADDRESS")
    job.add_argument("--mail-type", metavar="WHEN", help="in the scheduler's words, such as END,FAIL")
    job.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTIONS",
        help='any other options of the scheduler, as --sbatch="--qos=long --constraint=a100"',
    )  # fmt: skip
    job.add_argument("--at-once", type=at_least_one, metavar="N", help="at most N training jobs at the same time")
    job.add_argument(
        "--warn", type=at_least_one, default=300, metavar="SECONDS",
        help="before the time limit, the job finishes its epoch and queues itself again (default: %(default)s)",
    )  # fmt: skip
    job.add_argument("--scratch", metavar="FOLDER", help="train from a copy on the node's disk, such as '$TMPDIR'")
    job.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line, as 'module load cuda'")
    how = parser.add_argument_group("what to do")
    how.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: slurm_DATASET_CONFIGURATION")
    how.add_argument("--scheduler", choices=[name for name in DIALECTS if name != "local"], default="slurm")
    how.add_argument("--overwrite", action="store_true", help="replace scripts in the folder that differ")
    how.add_argument(
        "--short-training", action="store_true",
        help="write NNUNET_EXT_EPOCHS and others that shorten the training into the scripts without asking",
    )  # fmt: skip
    how.add_argument(
        "--accept-finished", action="store_true", help="keep finished folds that were trained by another schedule"
    )
    act = how.add_mutually_exclusive_group()
    act.add_argument("--submit", action="store_true", help="submit the scripts to Slurm")
    act.add_argument("--dry-run", action="store_true", help="print the scripts, write nothing")
    act.add_argument("--local", action="store_true", help="run everything here, a fold at a time or one per GPU")
    commands = parser.add_subparsers(dest="slurm_command", metavar="|".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f"nnunet_ext.cli.slurm_{name}")
        sub = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        sub.set_defaults(run_slurm=module.run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.slurm_command:
        return int(arguments.run_slurm(arguments))
    needed = {"-d": arguments.dataset, "-tr": arguments.trainers, "-c": arguments.configuration}
    if missing := [option for option, value in needed.items() if not value]:
        return _usage(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed")
    if arguments.scheduler != "slurm" and (arguments.submit or arguments.local):
        return _usage(f"--scheduler {arguments.scheduler} only writes scripts; submit them with their submit.sh")
    gpus = _gpus_here(arguments) if arguments.local else []
    pipeline = _compose(arguments, len(gpus))
    if lines := carried(pipeline):
        listed = "\n  ".join(lines)
        print(f"set in this shell, and so in the scripts:\n  {listed}", file=sys.stderr)
    if arguments.dry_run:
        for name, text in files(pipeline).items():
            print(f"==> {name} <==\n{text}")
        return 0
    if not (arguments.local or arguments.short_training):
        _ask_about_short_training(pipeline)
    if arguments.submit:
        _check_not_queued(pipeline)
    write(pipeline, arguments.overwrite)
    print(_summary(pipeline))
    if arguments.local:
        return _local(pipeline, gpus)
    if arguments.submit:
        return subprocess.run(["bash", str(Path(pipeline.folder, "submit.sh"))], check=False).returncode
    submit = shlex.join(["bash", str(Path(pipeline.folder, "submit.sh"))])
    print(f"\nnothing submitted; read the scripts, then: {submit}", file=sys.stderr)
    return 0


def _gpus_here(arguments: argparse.Namespace) -> list[str]:
    """The GPUs --local may use; without any, and without --gpus, it uses the CPU."""
    from nnunet_ext.slurm.local import require_bash, visible_gpus

    require_bash()
    gpus = [] if arguments.gpus == 0 else visible_gpus()
    if arguments.gpus is None:
        arguments.gpus = 1 if gpus else 0
    if arguments.gpus > len(gpus):
        raise UserError(f"--gpus {arguments.gpus}, but {len(gpus)} can be seen here; give fewer, or 0 for the CPU")
    return gpus


def _compose(arguments: argparse.Namespace, num_gpus: int) -> Pipeline:
    gpus = 1 if arguments.gpus is None else arguments.gpus
    cpus = arguments.cpus or 12
    if arguments.local and arguments.cpus is None:
        cpus = max(available_cores() // max(num_gpus // max(gpus, 1), 1), 1)
    resources = Resources(
        cpus=cpus,
        gpus=gpus,
        memory_mib=parse_memory(arguments.mem),
        minutes=parse_minutes(arguments.time),
        partition=arguments.partition,
        account=arguments.account,
        mail_user=arguments.mail_user,
        mail_type=arguments.mail_type,
        extra=_options(arguments.sbatch),
    )
    return compose(
        arguments.dataset,
        arguments.trainers,
        arguments.configuration,
        arguments.plans,
        arguments.folds,
        resources,
        scheduler="local" if arguments.local else arguments.scheduler,
        folder=arguments.output,
        images=arguments.images,
        references=arguments.references,
        scratch=arguments.scratch,
        at_once=arguments.at_once,
        warn_seconds=arguments.warn,
        cpu_partition=arguments.cpu_partition,
        setup=tuple(arguments.setup),
        small=Small(
            cpus=arguments.small_cpus,
            memory_mib=None if arguments.small_mem is None else parse_memory(arguments.small_mem),
            minutes=None if arguments.small_time is None else parse_minutes(arguments.small_time),
        ),
        accept_finished=arguments.accept_finished,
    )


def _options(texts: list[str]) -> tuple[str, ...]:
    """One option per line: "--qos=long --constraint a100" are two."""
    lines: list[str] = []
    for text in split_options(texts):
        if text.startswith("-"):
            name, equals, value = text.partition("=")
            lines.append(word(name) + equals + (word(value) if equals else ""))
        elif lines:
            lines[-1] += f" {word(text)}"
        else:
            raise UsageError(f"--sbatch {text} is no option; expected such as --sbatch=--qos=long")
    return tuple(lines)


def _ask_about_short_training(pipeline: Pipeline) -> None:
    """What a trial had set must not go unnoticed into jobs that reserve a GPU for a day."""
    short = " and ".join(shortening(pipeline))
    if not short:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{short} is set in this shell and makes every training short; unset it, or if that is meant "
                         "pass --short-training")  # fmt: skip
    print(f"{short}: this makes every training short. Write it into the scripts? [y/N] ", end="", file=sys.stderr)
    if input().strip().lower() not in ("y", "yes"):
        raise UserError("nothing written; unset what is not meant, and run the same command again")


def _check_not_queued(pipeline: Pipeline) -> None:
    from nnunet_ext.slurm.queue import queued, require_slurm

    require_slurm()
    busy = queued({entry.job_id for entry in submissions(pipeline)})
    if busy:
        raise UserError(
            f"{len(busy)} jobs of {pipeline.folder} are in the queue; see nnunet_ext slurm status, cancel them with "
            "scancel, or choose another folder with -o"
        )


def _summary(pipeline: Pipeline) -> str:
    runs = ", ".join(f"{run.trainer} ({run.plans})" for run in pipeline.runs)
    lines = [
        f"{pipeline.dataset}, {pipeline.configuration}: {runs}, folds {' '.join(pipeline.folds)}",
        f"scripts in {pipeline.folder}",
    ]
    for job in jobs(pipeline):
        resources = job.resources
        share = f"{resources.cpus} CPUs" + (f", {resources.gpus} GPU" if resources.gpus else "")
        if pipeline.scheduler != "local":
            share += (
                f", {resources.memory_mib / 1024:.4g} GiB, {resources.minutes // 60}:{resources.minutes % 60:02d} h"
            )
        count = f"{job.tasks} x " if job.tasks else ""
        throttle = f", {job.at_once} at once" if job.at_once else ""
        lines.append(f"  {job.name:10s}  {job.purpose}  [{count}{share}{throttle}]")
    if pipeline.images is None:
        lines.append("  no imagesTs and no -i: nothing will be predicted")
    return "\n".join(lines)


def _local(pipeline: Pipeline, gpus: list[str]) -> int:
    from nnunet_ext.slurm.local import run_local
    from nnunet_ext.slurm.outcome import outcome

    with stop_on_signals():
        run_local(pipeline, gpus)
    for line in outcome(pipeline):
        print(line)
    return 0


def _count(text: str) -> int:
    number = decimal(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number")
    return number


def _usage(message: str) -> int:
    print(f"nnunet_ext slurm: {message}; see nnunet_ext slurm --help", file=sys.stderr)
    return 2
