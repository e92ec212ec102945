"""Dice, IoU, HD95, NSD, ASSD and volumes of predicted label maps, per case and per label or region.

examples:
  nnunet_ext evaluate -r nnUNet_raw/Dataset004_Hippocampus/labelsTs -p predictions
  nnunet_ext evaluate -r labelsTs -p predictions --labels 1 2 3 1,2,3
  nnunet_ext evaluate -r labelsTs -p predictions --convention segmamba
  nnunet_ext evaluate --folds nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres

Writes summary.json (nnU-Net's, and more), per_case.csv and per_label.csv into PREDICTION/evaluation or
RESULT_FOLDER/evaluation, so that nnU-Net's own summary.json stays as it is; -o chooses another folder. The table goes
to stdout. HD95 is the maximum of the two directed 95th percentiles in mm (as MONAI). A structure that only one of the
two maps has is counted as missed or false alarm, never dropped: docs/metrics.md says how. --convention computes what a
published script or package would: values of different conventions cannot be compared.

Exit status: 0 all cases evaluated, 1 something could not be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_ext.errors import UserError, one_line
from nnunet_ext.evaluation.conventions import CONVENTIONS
from nnunet_ext.evaluation.folder import evaluate_folder, evaluate_folds
from nnunet_ext.evaluation.labels import Labels, Target, labels_from_dataset_json, labels_from_values
from nnunet_ext.evaluation.summary import check_output_folder, format_table, write_results
from nnunet_ext.machine import available_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-p", "--prediction", type=Path, metavar="FOLDER", help="folder of predicted label maps")
    what.add_argument(
        "--folds", type=Path, metavar="RESULT_FOLDER", help="nnU-Net result folder: pool its fold_k/validation folders"
    )
    parser.add_argument(
        "-r",
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="folder of reference label maps with the same names "
        "(with --folds, default: nnUNet_preprocessed/DATASET/gt_segmentations)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="results go here (default: evaluation in -p or --folds; evaluation_NAME with --convention NAME)",
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="labels, regions and ignore label (default: the dataset.json in or above the prediction folder, or in or "
        "beside the reference folder)",
    )
    parser.add_argument(
        "--labels",
        type=_target,
        nargs="+",
        metavar="L",
        help="evaluate these labels, regions as 1,2,3; no other value may occur in the files, unless --dataset-json "
        "declares it",
    )
    parser.add_argument("--ignore-label", type=int, metavar="L", help="with --labels alone: value of the ignore label")
    parser.add_argument(
        "--allow-missing", action="store_true", help="count references without a prediction as empty predictions"
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="default",
        metavar="NAME",
        help=f"compute as another source does: {', '.join(CONVENTIONS)} (default: default)",
    )
    parser.add_argument("--nsd-tolerance", type=float, default=1.0, metavar="MM", help="tolerance of NSD (default: 1)")
    parser.add_argument(
        "-n",
        "--processes",
        type=int,
        default=available_cores(),
        metavar="N",
        help="worker processes (default: usable CPUs)",
    )
    parser.add_argument("--json", action="store_true", help="print summary.json to stdout instead of the table")
    parser.add_argument("-q", "--quiet", action="store_true", help="no table, no progress bar")


def run(arguments: argparse.Namespace) -> int:
    if arguments.prediction is not None and arguments.reference is None:
        return _usage("-p needs -r, the folder of references")
    if arguments.ignore_label is not None and (arguments.labels is None or arguments.dataset_json is not None):
        return _usage("--ignore-label goes with --labels alone; a dataset.json names its own")
    evaluated = arguments.prediction if arguments.folds is None else arguments.folds
    # Values of another convention lie beside the usual ones, not in their place.
    usual = "evaluation" if arguments.convention == "default" else f"evaluation_{arguments.convention}"
    output = arguments.output if arguments.output is not None else evaluated / usual
    if not evaluated.is_dir():
        raise UserError(f"{evaluated} is not a folder; give the folder that holds the predictions")
    check_output_folder(output)
    options = {
        "labels": _labels(arguments),
        "allow_missing": arguments.allow_missing,
        "nsd_tolerance_mm": arguments.nsd_tolerance,
        "convention": CONVENTIONS[arguments.convention],
        "processes": arguments.processes,
        "progress": not arguments.quiet,
    }
    if arguments.folds is not None:
        evaluation = evaluate_folds(arguments.folds, arguments.reference, **options)
    else:
        evaluation = evaluate_folder(arguments.reference, arguments.prediction, **options)
    write_results(evaluation, output)
    if arguments.json:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    elif not arguments.quiet:
        print(format_table(evaluation))
        print(f"results in {one_line(output)}", file=sys.stderr)
    for note in evaluation.notes:
        print(f"nnunet_ext evaluate: note: {one_line(note)}", file=sys.stderr)
    if evaluation.missing:
        listed = one_line(", ".join(evaluation.missing))
        print(f"nnunet_ext evaluate: counted as empty, no prediction: {listed}", file=sys.stderr)
    for failure in evaluation.failures:
        left_out = one_line(f"{failure.pair.case} left out: {failure.message}")
        print(f"nnunet_ext evaluate: {left_out}", file=sys.stderr)
    return 1 if evaluation.failures else 0


def _labels(arguments: argparse.Namespace) -> Labels | None:
    if arguments.dataset_json is not None:
        return labels_from_dataset_json(arguments.dataset_json, arguments.labels)
    if arguments.labels is not None:
        return labels_from_values(arguments.labels, arguments.ignore_label)
    return None


def _target(text: str) -> Target:
    try:
        members = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no label; expected 3, or 1,2,3 for a region") from None
    return members if len(members) > 1 else members[0]


def _usage(message: str) -> int:
    print(f"nnunet_ext evaluate: {message}; see nnunet_ext evaluate --help", file=sys.stderr)
    return 2
