"""Check an nnU-Net raw data set: every file read to its end, headers, voxels, labels, cases against each other.

examples:
  nnunet_ext data check nnUNet_raw/Dataset004_Hippocampus
  nnunet_ext data check 27 --patients '(patient\\d+)' --splits nnUNet_preprocessed/Dataset027_ACDC/splits_final.json
  nnunet_ext data check Dataset004_Hippocampus -o report.html --json > findings.json

Finds what nnU-Net's own integrity check lets pass: truncated files, NaN, constant and duplicated images, shifted
labels, disagreeing geometries, swapped sides. docs/data.md lists every check. Nothing in the data set is changed.

Exit status: 0 no errors (there may be warnings), 1 errors found, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path

from nnunet_ext.data.check import Report, check_dataset
from nnunet_ext.data.check_page import render_page
from nnunet_ext.data.findings import SEVERITIES
from nnunet_ext.data.forecast import forecast_lines
from nnunet_ext.files import json_text, write_json, write_text
from nnunet_ext.machine import available_cores

# More lines of one kind hide the other kinds; --json and -o have them all.
_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder, or name or number under $nnUNet_raw")
    parser.add_argument("-o", "--output", type=Path, metavar="REPORT.html", help="write a page with pictures")
    parser.add_argument("--json", action="store_true", help="print findings and facts about every case as JSON")
    parser.add_argument(
        "--patients", metavar="REGEX", help="finds the patient in a case's name; the first group, else the whole match"
    )
    parser.add_argument(
        "--splits", type=Path, metavar="FILE", help="with --patients: write folds that keep patients together"
    )
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="number of those folds (default: 5)")
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes (default: usable CPUs)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no table, no progress bar")


def run(arguments: argparse.Namespace) -> int:
    if arguments.splits is not None and arguments.patients is None:
        print("nnunet_ext data check: --splits needs --patients; see --help", file=sys.stderr)
        return 2
    if arguments.folds < 2 or arguments.processes < 1:
        print("nnunet_ext data check: --folds begins at 2, --processes at 1", file=sys.stderr)
        return 2
    report = check_dataset(
        arguments.dataset, arguments.patients, arguments.folds, arguments.processes, not arguments.quiet
    )
    if arguments.output is not None:
        write_text(arguments.output, render_page(report))
    if arguments.splits is not None:
        write_json(arguments.splits, report.folds)
    if arguments.json:
        print(json_text(report.as_dict()), end="")
    elif not arguments.quiet:
        print(_table(report))
    for path in (arguments.output, arguments.splits):
        if path is not None and not arguments.quiet:
            print(f"wrote {path}", file=sys.stderr)
    return 1 if report.errors else 0


def _table(report: Report) -> str:
    lines = []
    for (severity, check), group in groupby(report.findings, key=lambda f: (f.severity, f.check)):
        found = list(group)
        lines.append(f"{severity}: {check} ({len(found)}): {found[0].remedy}")
        lines += [f"  {finding.file}: {finding.value}" for finding in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  ... and {len(found) - _SHOWN} more (--json, -o)")
    counts = ", ".join(f"{sum(f.severity == s for f in report.findings)} {s}s" for s in SEVERITIES)
    return "\n".join([*lines, *forecast_lines(report.forecast), f"{len(report.cases)} cases: {counts}"])
