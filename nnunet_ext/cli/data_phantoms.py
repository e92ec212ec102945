"""Draw a small labelled 3D data set in nnU-Net's raw format, to try things on without anybody's data.

Abdominal scans of about 20x40x48 voxels with four labels (liver, vessel, kidneys, lesion), noise, bias field and thick
slices. The same seed gives the same images. Nothing is downloaded.

examples:
  nnunet_ext data phantoms
  nnunet_ext data phantoms -d 901 --training 40 --test 10 --seed 1
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_ext.cli.numbers import at_least_one
from nnunet_ext.data.phantoms import make_dataset
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to (default: $nnUNet_raw)")
    parser.add_argument(
        "-d", type=_dataset_number, default=900, metavar="ID", help="number of the data set (default: %(default)s)"
    )
    parser.add_argument("--training", type=at_least_one, default=12, metavar="N", help="cases (default: %(default)s)")
    parser.add_argument("--test", type=at_least_one, default=4, metavar="N", help="test cases (default: %(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="decides the images (default: %(default)s)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    raw = arguments.output if arguments.output is not None else os.environ.get("nnUNet_raw")
    if raw is None:
        raise UserError("nnUNet_raw is not set; set it or give a folder with -o")
    folder = Path(raw) / f"Dataset{arguments.d:03d}_Phantoms"
    print(make_dataset(folder, arguments.training, arguments.test, arguments.seed, progress=not arguments.quiet))
    return 0


def _dataset_number(text: str) -> int:
    number = decimal(text)
    if not number or number > 999:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 999")
    return number


def _seed(text: str) -> int:
    number = decimal(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return number
