"""State of every fold of a pipeline: from the queue, and from what nnU-Net writes into the run folders.

example:
  nnunet_ext slurm status slurm_Dataset004_Hippocampus_3d_fullres

finished: validated. running, pending: in the queue. failed: why, and the last lines of the log. stopped: begun, and
nobody works on it. begun: the same without Slurm, where it may still run. waiting: not begun. The time left is that of
the training, without the validation.

Exit status: 0 all is finished or on its way, 1 something has failed or stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunet_ext.files import json_text
from nnunet_ext.slurm.folder import load
from nnunet_ext.slurm.progress import duration
from nnunet_ext.slurm.status import ArrayTask, Status, Step, read_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the scripts are")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    status = read_status(load(arguments.folder))
    if arguments.json:
        print(json_text(_facts(status)), end="")
    else:
        print(table(status))
        for part in status.parts:
            if part.state == "failed":
                print(_failure(part))
    broken = any(part.state in ("failed", "stopped") for part in status.parts)
    if broken:
        print(f"next: {_next(status)}", file=sys.stderr)
    return 1 if broken else 0


def table(status: Status) -> str:
    """One row per fold, one line for the other steps."""
    rows = [("trainer", "plans", "fold", "state", "epoch", "EMA Dice", "left", "job")]
    for task in status.tasks:
        progress = task.progress
        left = "-"
        if task.state in ("running", "pending") and progress.seconds_left is not None:
            left = "validates" if progress.trained else duration(progress.seconds_left)
        rows.append(
            (
                task.run.trainer,
                task.run.plans,
                task.fold,
                task.state + (f" ({task.detail})" if task.state == "pending" and task.detail else ""),
                "-" if progress.total is None else f"{progress.epochs}/{progress.total}",
                "-"
                if progress.ema_dice is None
                else f"{progress.ema_dice:.3f}" + ", learnt nothing" * progress.learnt_nothing,
                left,
                task.job or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = sum(task.state == "finished" for task in status.tasks)
    steps = ", ".join(
        f"{step.name} {step.state}" + (f" ({step.detail})" if step.state == "pending" else "") for step in status.steps
    )
    return "\n".join([*lines, f"{count} of {len(status.tasks)} folds finished; {steps}"])


def _failure(part: ArrayTask | Step) -> str:
    name = f"{part.run.trainer} {part.run.plans} fold {part.fold}" if isinstance(part, ArrayTask) else part.name
    lines = [f"\n{name} failed: {part.detail}"]
    if part.log is not None:
        lines += [f"  the end of {part.log}:", *(f"  | {line}" for line in part.tail)]
    return "\n".join(lines)


def _next(status: Status) -> str:
    folder = status.pipeline.folder
    if status.pipeline.scheduler == "slurm":
        return f"nnunet_ext slurm resume {folder}"
    again = "the same nnunet_ext slurm command" if status.pipeline.scheduler == "local" else f"bash {folder}/submit.sh"
    return f"{again} again"


def _facts(status: Status) -> dict[str, Any]:
    folds = [
        {
            "trainer": task.run.trainer,
            "plans": task.run.plans,
            "fold": task.fold,
            "task": task.number,
            **_common(task),
            "epoch": task.progress.epochs,
            "epochs": task.progress.total,
            "ema_dice": task.progress.ema_dice,
            "learnt_nothing": task.progress.learnt_nothing,
            "losses": task.progress.losses,
            "seconds_left": task.progress.seconds_left,
        }
        for task in status.tasks
    ]
    steps = [{"step": step.name, **_common(step)} for step in status.steps]
    return {"dataset": status.pipeline.dataset, "folds": folds, "steps": steps, "finished": status.finished}


def _common(part: ArrayTask | Step) -> dict[str, Any]:
    log = None if part.log is None else str(part.log)
    return {"state": part.state, "detail": part.detail, "job": part.job, "log": log, "tail": part.tail}
