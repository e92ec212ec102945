"""Download a task of the Medical Segmentation Decathlon and convert it to nnU-Net's raw format.

examples:
  nnunet_ext data get msd --list
  nnunet_ext data get msd Task04_Hippocampus
  nnunet_ext data get msd 9 -o /data/nnUNet_raw -d 109

An interrupted download continues where it stopped when the same command is given again. The archive's checksum is
verified, nothing outside the new folder is written, and the data set appears only when it is complete.

Exit status: 0 done, 1 the download or conversion failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_ext.data.msd import BASE, TASKS, find_task, get_task
from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", choices=["msd"], help="msd: Medical Segmentation Decathlon")
    parser.add_argument("task", nargs="?", metavar="TASK", help="number or name, such as 4 or Task04_Hippocampus")
    parser.add_argument("--list", action="store_true", help="list the tasks and stop")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to (default: $nnUNet_raw)")
    parser.add_argument("-d", type=int, metavar="ID", help="number of the data set (default: the task's)")
    parser.add_argument("--base", default=BASE, metavar="URL", help="address of the archives (default: %(default)s)")
    parser.add_argument("--keep-archive", action="store_true", help="keep the downloaded archive")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for task in TASKS:
            print(f"{task.archive.removesuffix('.tar'):22s} {task.content}")
        return 0
    if arguments.task is None:
        print("nnunet_ext data get: give a task, or --list", file=sys.stderr)
        return 2
    if not arguments.base.startswith(("http://", "https://")):
        print(f"nnunet_ext data get: --base {arguments.base} is no http or https address", file=sys.stderr)
        return 2
    if arguments.d is not None and not 0 < arguments.d < 1000:
        print(f"nnunet_ext data get: -d {arguments.d} is no number from 1 to 999", file=sys.stderr)
        return 2
    raw = arguments.output if arguments.output is not None else os.environ.get("nnUNet_raw")
    if raw is None:
        raise UserError("nnUNet_raw is not set; set it or give a folder with -o")
    folder = get_task(
        find_task(arguments.task), raw, arguments.base, arguments.d, arguments.keep_archive, not arguments.quiet
    )
    print(folder)
    return 0
