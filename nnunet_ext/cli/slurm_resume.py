"""Submit what is unfinished again: folds that failed or were cancelled, and the steps after them.

What is in the queue stays there. The scripts are submitted as they lie in the folder, edited or not; finished folds are
left alone, and the others continue from their last checkpoint.

examples:
  nnunet_ext slurm resume slurm_Dataset004_Hippocampus_3d_fullres
  nnunet_ext slurm resume slurm_Dataset004_Hippocampus_3d_fullres --sbatch=--mem=128G
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.slurm.compose import split_options
from nnunet_ext.slurm.finished import refuse_other_schedules, variables_in_script
from nnunet_ext.slurm.folder import load
from nnunet_ext.slurm.queue import require_slurm
from nnunet_ext.slurm.resume import command, plan_resume, resume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the scripts are")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    parser.add_argument(
        "--accept-finished", action="store_true", help="keep finished folds that were trained by another schedule"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="for these jobs only, such as --sbatch=--mem=128G",
    )


def run(arguments: argparse.Namespace) -> int:
    pipeline = load(arguments.folder)
    if pipeline.scheduler != "slurm":
        again = (
            "run the same command again" if pipeline.scheduler == "local" else f"run {pipeline.folder}/submit.sh again"
        )
        raise UserError(
            f"{pipeline.folder} is for {pipeline.scheduler}, not for Slurm; {again}: what is finished is skipped"
        )
    require_slurm()
    options = split_options(arguments.sbatch)
    if not arguments.accept_finished:
        refuse_other_schedules(pipeline, variables_in_script(pipeline))
    plan = plan_resume(pipeline)
    if not plan.submit:
        print("nothing to submit: everything is finished or in the queue", file=sys.stderr)
        return 0
    if arguments.dry_run:
        for job_id in plan.cancel:
            print(f"scancel {job_id}")
        for number, step in enumerate(plan.submit):
            previous = plan.submit[number - 1].step.upper() if number else None
            print(shlex.join(["sbatch", *command(step, previous, options), f"{step.step}.sh"]))
        return 0
    for line in resume(pipeline, plan, options):
        print(line)
    return 0
