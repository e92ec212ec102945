"""Predicted label maps against references: metrics, published conventions, comparison; see docs/metrics.md.

    images.py, labels.py, splits.py                  label maps on one grid, labels and regions, folds
    metrics.py, surface.py, surfels.py, lesions.py   Dice, IoU, HD95, NSD, ASSD and volumes of one pair
    conventions.py                                   which of them, computed how: a row per publication
    cases.py, folder.py, summary.py                  one case, many cases; summary.json and tables
    compare.py, samples.py                           methods on the same cases; samples of one prediction

Example:

    from nnunet_ext.evaluation import evaluate_folder, summarise, write_results

    evaluation = evaluate_folder("labelsTs", "predictions", labels=[1, 2])   # or labels=None: from dataset.json
    evaluation.cases[0].pair.case, evaluation.cases[0].foreground_dice
    evaluation.cases[0].metrics[1]["HD95"]          # mm; inf when missed, nan when absent from both
    summarise(evaluation)["foreground_mean"]["Dice"]
    write_results(evaluation, "predictions/evaluation")  # summary.json, per_case.csv, per_label.csv
"""

from nnunet_ext.evaluation.cases import CaseResult, Pair, evaluate_case
from nnunet_ext.evaluation.conventions import CONVENTIONS, Convention, convention, surface_metrics
from nnunet_ext.evaluation.folder import Evaluation, Failure, evaluate_folder, evaluate_folds
from nnunet_ext.evaluation.images import LabelMap, check_same_grid, read_label_map
from nnunet_ext.evaluation.labels import Labels, find_dataset_json, labels_from_dataset_json, labels_from_values
from nnunet_ext.evaluation.metrics import METRICS, compare_label_maps
from nnunet_ext.evaluation.summary import check_output_folder, format_table, summarise, write_results
from nnunet_ext.evaluation.surface import SurfaceDistances, surface_distances, surface_distances_plain

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "CaseResult",
    "Convention",
    "Evaluation",
    "Failure",
    "LabelMap",
    "Labels",
    "Pair",
    "SurfaceDistances",
    "check_output_folder",
    "check_same_grid",
    "compare_label_maps",
    "convention",
    "evaluate_case",
    "evaluate_folder",
    "evaluate_folds",
    "find_dataset_json",
    "format_table",
    "labels_from_dataset_json",
    "labels_from_values",
    "read_label_map",
    "summarise",
    "surface_distances",
    "surface_distances_plain",
    "surface_metrics",
    "write_results",
]
