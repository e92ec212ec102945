"""Choose the best run by nnU-Net's own rule and determine the post-processing of each; a step of `nnunet_ext slurm`.

example:
  nnunet_ext slurm select -d 4 -c 3d_fullres -f 0 1 2 3 4 \\
      -r nnUNetTrainerExt__nnUNetPlans nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny
"""

from __future__ import annotations

import argparse

from nnunet_ext.slurm.compose import dataset_name
from nnunet_ext.slurm.select import select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, help="number or name")
    parser.add_argument("-c", dest="configuration", required=True, help="such as 3d_fullres")
    parser.add_argument("-f", dest="folds", nargs="+", type=int, required=True, metavar="FOLD")
    parser.add_argument("-r", dest="runs", nargs="+", required=True, metavar="TRAINER__PLANS")
    parser.add_argument("-n", dest="processes", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    dataset = dataset_name(arguments.dataset)
    best = select(dataset, arguments.configuration, arguments.runs, arguments.folds, arguments.processes)
    print(f"best by nnU-Net's rule: {best}")
    return 0
