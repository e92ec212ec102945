"""Plan, preprocess and split what is missing; the first step of the scripts of `nnunet_ext slurm`.

example:
  nnunet_ext slurm prepare -d Dataset004_Hippocampus -c 3d_fullres -p nnUNetPlans -n 8
"""

from __future__ import annotations

import argparse

from nnunet_ext.slurm.compose import dataset_name
from nnunet_ext.slurm.prepare import prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset", required=True, help="number or name")
    parser.add_argument("-c", dest="configuration", required=True, help="such as 3d_fullres")
    parser.add_argument("-p", dest="plans", nargs="+", default=["nnUNetPlans"], metavar="PLANS")
    parser.add_argument("-n", dest="processes", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    prepare(dataset_name(arguments.dataset), arguments.configuration, arguments.plans, arguments.processes)
    return 0
