"""One case: which files belong together, and their metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.conventions import DEFAULT, Convention
from nnunet_ext.evaluation.images import FILE_ENDINGS, check_same_grid, read_label_map
from nnunet_ext.evaluation.labels import Labels, Target
from nnunet_ext.evaluation.metrics import compare_label_maps
from nnunet_ext.json_object import is_text


@dataclass(frozen=True)
class Pair:
    """Files of one case; `prediction` is None when it is missing, `fold` when there are no folds."""

    case: str
    reference: Path
    prediction: Path | None
    fold: int | None = None


@dataclass(frozen=True)
class CaseResult:
    """Metrics of one case.

    Attributes:
        pair: its name and files.
        metrics: {label or region: {metric: value}}, metrics as the convention's `columns`.
        diagonal_mm: length of the image diagonal, the distance charged for a missed structure or a false alarm.
        spacing_mm: voxel size of the reference, (z, y, x) or (y, x).
        reference_digest: `LabelMap.digest` of the reference, which tells it from others.
    """

    pair: Pair
    metrics: dict[Target, dict[str, float]]
    diagonal_mm: float
    spacing_mm: tuple[float, ...]
    reference_digest: str

    @property
    def foreground_dice(self) -> float:
        """Mean Dice over the labels or regions present in reference or prediction; NaN when none is."""
        dice = [m["Dice"] for m in self.metrics.values() if not np.isnan(m["Dice"])]
        return float(np.mean(dice)) if dice else float("nan")

    def status(self, target: Target) -> str:
        """`both`, `missed` (reference only), `false_alarm` (prediction only) or `both_empty`."""
        present = self.metrics[target]["n_ref"] > 0, self.metrics[target]["n_pred"] > 0
        return {(1, 1): "both", (1, 0): "missed", (0, 1): "false_alarm", (0, 0): "both_empty"}[present]


def evaluate_case(
    reference: str | os.PathLike[str],
    prediction: str | os.PathLike[str] | None,
    labels: Labels,
    *,
    case: str | None = None,
    fold: int | None = None,
    nsd_tolerance_mm: float = 1.0,
    convention: Convention = DEFAULT,
) -> CaseResult:
    """Metrics of one predicted label map.

    Args:
        reference: file of the reference.
        prediction: file of the prediction; None counts as an empty prediction.
        labels: from `labels_from_dataset_json` or `labels_from_values`.
        case: name of the case; the reference's file name without its ending by default.
        fold: number of the fold, carried into the tables.
        nsd_tolerance_mm: tolerance of NSD.
        convention: rules of the metrics.

    Raises:
        UserError: a file is damaged, the grids differ, or a label value is unknown.
    """
    expected = read_label_map(reference)
    if prediction is None:
        predicted = np.zeros_like(expected.array)
    else:
        found = read_label_map(prediction)
        check_same_grid(expected, found)
        predicted = found.array
    metrics = compare_label_maps(
        expected.array,
        predicted,
        expected.spacing_mm,
        labels,
        nsd_tolerance_mm,
        names=(str(reference), str(prediction)),
        convention=convention,
    )
    pair = Pair(
        case or split_name(Path(reference))[0],
        Path(reference),
        None if prediction is None else Path(prediction),
        fold,
    )
    diagonal_mm = float(np.linalg.norm(np.multiply(expected.array.shape, expected.spacing_mm)))
    return CaseResult(pair, metrics, diagonal_mm, expected.spacing_mm, expected.digest())


def pair_folders(
    reference_folder: str | os.PathLike[str],
    prediction_folder: str | os.PathLike[str],
    *,
    file_ending: str | None = None,
    expected_cases: Iterable[str] | None = None,
    allow_missing: bool = False,
    fold: int | None = None,
) -> list[Pair]:
    """Match the files of two folders by name without ending.

    Args:
        reference_folder: folder of references.
        prediction_folder: folder of predictions.
        file_ending: that of dataset.json; other files are then overlooked, unless a folder has none with it.
        expected_cases: cases that must be predicted; all references by default.
        allow_missing: pair a reference without prediction with None instead of refusing.
        fold: number of the fold.

    Raises:
        UserError: a folder is empty, or the sets of cases differ.
    """
    references = label_maps(Path(reference_folder), file_ending)
    # A fold in which every prediction is missing is still a fold.
    predictions = label_maps(Path(prediction_folder), file_ending)
    wanted = set(references) if expected_cases is None else set(expected_cases)
    for cases, message in (
        (set(predictions) - wanted, f"in {prediction_folder} have no reference in {reference_folder}; remove them"),
        (wanted - set(references), f"have no reference in {reference_folder}; choose the folder that has them (-r)"),
        (
            set() if allow_missing else wanted - set(predictions),
            f"of {reference_folder} have no prediction in {prediction_folder}; predict them, "
            "or pass --allow-missing to count them as empty predictions",
        ),
    ):
        if cases:
            raise UserError(f"{len(cases)} case(s) ({few(cases)}) {message}")
    return [Pair(case, references[case], predictions.get(case), fold) for case in sorted(wanted)]


def split_name(path: Path) -> tuple[str, str]:
    """`liver_12.nii.gz` as (`liver_12`, `.nii.gz`); the ending is empty when it is none of a label map."""
    for ending in FILE_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], ending
    return path.name, ""


def label_maps(folder: Path, file_ending: str | None) -> dict[str, Path]:
    """{case: file} of a folder.

    Args:
        folder: of label maps.
        file_ending: that of dataset.json; other files are then overlooked, unless there is none with it.

    Raises:
        UserError: the folder is none or holds no label map, a case has two files, or its name is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the label maps")
    files = sorted(p for p in folder.iterdir() if split_name(p)[1] and not p.name.startswith(".") and p.is_file())
    declared = [p for p in files if file_ending and p.name.endswith(file_ending)]
    found: dict[str, Path] = {}
    for path in declared or files:
        case = split_name(path)[0]
        if not is_text(case):
            raise UserError(f"{folder} holds {path.name}, whose name is not UTF-8; no table can hold it; rename it")
        if case in found:
            raise UserError(f"{folder} holds case {case} twice ({found[case].name}, {path.name}); keep one")
        found[case] = path
    if not found:
        raise UserError(f"{folder} holds no label map; expected files such as {file_ending or '.nii.gz'}")
    return found


def few(cases: Iterable[str]) -> str:
    """The first three names, for a message."""
    names = sorted(cases)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
