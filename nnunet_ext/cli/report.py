"""Compare methods on the same cases, on one page: tables with intervals, tests, plots, pictures, a methods paragraph.

examples:
  nnunet_ext report 'nnUNet_results/Dataset004_Hippocampus/*' -o report.html
  nnunet_ext report 'U-Net=.../nnUNetTrainer__nnUNetPlans__2d' 'SegMamba=.../nnUNetTrainerSegMamba__*' -o report.html
  nnunet_ext report predictions_a predictions_b -r labelsTs --patients '(patient\\d+)' -o report.html

RUN is an nnU-Net result folder (Trainer__Plans__config; plans and trainers may differ), a folder of predictions, or a
quoted glob; NAME=RUN gives it a name. The first is the baseline. A run without an evaluation is evaluated first, as
nnunet_ext evaluate would. Folds are pooled by case. Writes the page, which needs no network, and beside it the main
table as .csv, .md and .tex, all numbers as .json, and the methods side by side on three cases as .png. Runs with
different cases, labels, references or rules are refused; docs/report.md explains every number.

Exit status: 0 the report is written, 1 it cannot be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_ext.errors import UserError, one_line
from nnunet_ext.evaluation.conventions import CONVENTIONS
from nnunet_ext.files import write_json, write_text
from nnunet_ext.machine import available_cores

# What a mail server or a phone still takes.
_MOST_BYTES = 3_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="result folder, prediction folder, glob, or NAME=RUN")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT.html", help="the page")
    parser.add_argument(
        "-r",
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="references, for runs without an evaluation and for pictures "
        "(default for result folders: nnUNet_preprocessed/DATASET/gt_segmentations)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images for the pictures (default: nnUNet_raw/DATASET/imagesTr)"
    )
    parser.add_argument(
        "--patients",
        metavar="REGEX",
        help="finds the patient in a case's name, first group or else whole match; statistics run over patients",
    )
    parser.add_argument(
        "--common-cases", action="store_true", help="compare the cases that all runs have; the page says which are left"
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="default",
        metavar="NAME",
        help=f"rules of the metrics: {', '.join(CONVENTIONS)} (default: default)",
    )
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes for runs that are evaluated (default: usable CPUs)",
    )
    parser.add_argument(
        "--test-set",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="evaluated predictions of a test set, one folder per RUN in the same order: a second table",
    )
    parser.add_argument(
        "--clicks",
        type=Path,
        metavar="FILE",
        help="clicks.json of nnunet_ext clicks, for a section",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no words")


def run(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if output.suffix.lower() not in (".html", ".htm"):
        print(
            f"nnunet_ext report: -o {one_line(output)} must end in .html; see nnunet_ext report --help", file=sys.stderr
        )
        return 2
    if arguments.images is not None and not arguments.images.is_dir():
        raise UserError(f"--images {arguments.images} is not a folder; give the folder of the images")
    from nnunet_ext.reports import tables
    from nnunet_ext.reports.comparison import compare_runs
    from nnunet_ext.reports.interaction_curves import interactions_section, read_interaction_curves
    from nnunet_ext.reports.overlays import label_values, overlays
    from nnunet_ext.reports.render import render
    from nnunet_ext.reports.runs import load_runs, load_test_set
    from nnunet_ext.reports.side_by_side import rows_of, write_side_by_side

    clicks = "" if arguments.clicks is None else interactions_section(read_interaction_curves(arguments.clicks))
    runs = load_runs(
        arguments.runs,
        CONVENTIONS[arguments.convention],
        references=arguments.reference,
        processes=arguments.processes,
        progress=not arguments.quiet,
    )
    data = compare_runs(runs, patients=arguments.patients, common_cases=arguments.common_cases)
    test_set = None
    if arguments.test_set:
        predicted = load_test_set(arguments.test_set, data.methods, CONVENTIONS[arguments.convention])
        test_set = compare_runs(predicted)
    pictures, problem = overlays(data, arguments.images, arguments.reference, label_values(data))
    try:
        rows = rows_of(data, arguments.images, arguments.reference)
    except UserError as error:
        rows, problem = [], problem or str(error)
    page = render(data, pictures, problem, test_set, clicks)
    for suffix, text in (
        (".csv", tables.as_csv(data)),
        (".md", tables.as_markdown(data)),
        (".tex", tables.as_latex(data)),
    ):
        write_text(output.with_suffix(suffix), text)
    content = tables.as_json(data)
    if test_set is not None:
        content["test_set"] = tables.as_json(test_set)
    write_json(output.with_suffix(".json"), content)
    if rows:
        write_side_by_side(rows, label_values(data), output.with_suffix(".png"))
    write_text(output, page)
    for warning in data.warnings:
        print(f"nnunet_ext report: note: {one_line(warning)}", file=sys.stderr)
    if problem:
        print(f"nnunet_ext report: note: pictures are missing: {one_line(problem)}", file=sys.stderr)
    if len(page.encode()) > _MOST_BYTES:
        print(f"nnunet_ext report: note: {one_line(output)} has {len(page.encode()) / 1e6:.1f} MB", file=sys.stderr)
    if not arguments.quiet:
        beside = ".csv, .md, .tex, .json" + (" and .png, the methods side by side" if rows else "")
        print(f"{one_line(output)} and, beside it, {beside}", file=sys.stderr)
    return 0
