"""Check, clean, get, draw and convert data sets in nnU-Net's raw format.

  check      find damaged files, wrong headers, labels that do not fit, copies across folds
  clean      write a repaired data set with a log of every change
  get        download a task of the Medical Segmentation Decathlon
  phantoms   draw a small data set to try things on
  convert    DICOM, BraTS, Synapse/BTCV, ACDC and AMOS folders to nnU-Net's raw format
  dicom-seg  label maps to DICOM SEG

example:
  nnunet_ext data check nnUNet_raw/Dataset004_Hippocampus -o report.html

Each has its own help: nnunet_ext data check --help
"""

from __future__ import annotations

import argparse
import importlib

COMMANDS = ("check", "clean", "get", "phantoms", "convert", "dicom-seg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="|".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f"nnunet_ext.cli.data_{name.replace('-', '_')}")
        sub = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        sub.set_defaults(run_data=module.run)


def run(arguments: argparse.Namespace) -> int:
    return int(arguments.run_data(arguments))
