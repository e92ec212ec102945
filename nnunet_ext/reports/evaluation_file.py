"""What `nnunet_ext evaluate` stored in summary.json, read back for a report."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.labels import LARGEST_LABEL
from nnunet_ext.json_object import JsonObject, is_number

_STATES = ("both", "missed", "false_alarm", "both_empty")
# What a report needs of every label; a convention may have more.
_ALWAYS = ("Dice", "n_ref", "volume_ref_ml")


@dataclass(frozen=True)
class ScoredCase:
    """One case of one method; values are keyed by label as in summary.json.

    Attributes:
        fold: number of the fold, None without folds.
        status: `both`, `missed`, `false_alarm` or `both_empty` per label.
        metrics: {label: {metric: value}}; NaN is undefined, infinite a distance to nothing.
        reference, prediction: files; the prediction is None when it was missing.
        reference_digest: tells references apart; None in evaluations made before it was stored.
        spacing_mm: of the reference; None likewise.
    """

    name: str
    fold: int | None
    status: dict[str, str]
    metrics: dict[str, dict[str, float]]
    diagonal_mm: float
    reference: Path
    prediction: Path | None
    reference_digest: str | None = None
    spacing_mm: tuple[float, ...] | None = None


@dataclass(frozen=True)
class StoredEvaluation:
    """One summary.json.

    Attributes:
        labels: {key: name}.
        cases: by name, at least one.
        settings: `nsd_tolerance_mm`, `ignore_label`, `convention`, `conventions` (rules in words) and `written_by`.
        notes, failed, missing: what the evaluation says about itself; names of cases.
    """

    labels: dict[str, str]
    cases: dict[str, ScoredCase]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    failed: tuple[str, ...]
    missing: tuple[str, ...]


def read_evaluation(file: Path, folder: Path) -> StoredEvaluation:
    """Read a summary.json.

    Args:
        file: the summary.
        folder: that was evaluated, where the predictions are even if it has been moved since.

    Raises:
        UserError: the file is not from this package, or something in it is not what it should be.
    """
    summary = JsonObject.read(file, f"run nnunet_ext evaluate for {folder} again")
    if not {"names", "settings", "metric_per_case"} <= set(summary.content):
        raise UserError(f"{file} is not from nnunet_ext evaluate; {summary.remedy}")
    labels = summary.texts_by_key("names")
    for key in labels:
        if not re.fullmatch(r"\d{1,19}|\(\d{1,19}(, \d{1,19})+,?\)|\(\d{1,19},\)", key) or any(
            int(value) > LARGEST_LABEL for value in re.findall(r"\d+", key)
        ):
            raise UserError(f"{file}: names has the key {key[:60]!r}, which is no label; {summary.remedy}")
    settings = summary.object("settings")
    entries = summary.objects("metric_per_case")
    if not entries or not labels:
        raise UserError(f"{file} holds no {'label' if entries else 'case'}; {summary.remedy}")
    cases: dict[str, ScoredCase] = {}
    for entry in entries:
        case = _case(entry, list(labels), folder)
        first = next(iter(cases.values()), case)
        for key, values in case.metrics.items():
            if values.keys() != first.metrics[key].keys() or values.keys() != case.metrics[next(iter(labels))].keys():
                raise UserError(f"{file}: {case.name} has other metrics than {first.name}; {summary.remedy}")
        if case.name in cases:
            raise UserError(f"{file} holds a case twice: {case.name}; {summary.remedy}")
        cases[case.name] = case
    return StoredEvaluation(
        labels,
        cases,
        {
            "written_by": settings.optional_text("written_by"),
            "nsd_tolerance_mm": settings.number("nsd_tolerance_mm"),
            "ignore_label": settings.optional_whole("ignore_label"),
            "convention": settings.optional_text("convention") or "default",
            "conventions": settings.texts_by_key("conventions") if settings.content.get("conventions") else {},
        },
        summary.texts("notes"),
        tuple(entry.text("case") for entry in summary.objects("failed")),
        summary.texts("missing_predictions"),
    )


def _case(entry: JsonObject, labels: list[str], folder: Path) -> ScoredCase:
    states = entry.object("status")
    status = {key: states.text(key) for key in labels}
    for key, state in status.items():
        if state not in _STATES:
            states.refuse(key, f"one of {', '.join(_STATES)}")
    metrics = entry.object("metrics")
    fold = entry.optional_whole("fold")
    prediction = entry.optional_text("prediction_file")
    spacing = entry.optional_numbers("spacing_mm")
    return ScoredCase(
        name=entry.text("case"),
        fold=fold,
        status=status,
        metrics={key: _values(metrics.object(key), status[key]) for key in labels},
        diagonal_mm=entry.number("image_diagonal_mm"),
        reference=Path(entry.text("reference_file")),
        prediction=None if not prediction else _found(Path(prediction), folder, fold),
        reference_digest=entry.optional_text("reference_digest"),
        spacing_mm=None if spacing is None else tuple(spacing),
    )


def _values(stored: JsonObject, status: str) -> dict[str, float]:
    """JSON knows neither NaN nor infinity; the status says which a null was."""
    values = {}
    for metric, value in stored.content.items():
        if value is None:
            charged = metric in ("HD95", "ASSD") and status in ("missed", "false_alarm")
            values[metric] = math.inf if charged else math.nan
        elif is_number(value):
            values[metric] = float(value)
        else:
            stored.refuse(metric, "a number or null")
    for metric in _ALWAYS:
        if metric not in values:
            stored.refuse(metric, "a number")
    stored.whole("n_ref")
    return values


def _found(prediction: Path, folder: Path, fold: int | None) -> Path:
    """Where a prediction is: the result folder may have been moved since it was evaluated."""
    moved = folder.joinpath(*prediction.parts[-3:] if fold is not None else prediction.parts[-1:])
    return moved if os.path.isfile(moved) else prediction
