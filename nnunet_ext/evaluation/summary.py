"""From cases to tables: summary.json that nnU-Net can read, tidy CSV, and a table for the terminal."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.errors import UserError, one_line
from nnunet_ext.evaluation.cases import CaseResult
from nnunet_ext.evaluation.conventions import Convention
from nnunet_ext.evaluation.folder import Evaluation
from nnunet_ext.evaluation.labels import Target
from nnunet_ext.files import write_json, write_text
from nnunet_ext.json_object import JsonObject

PER_LABEL_COLUMNS = (
    "label", "name", "metric", "n_cases", "n_both_empty", "missed", "false_alarms",
    "n", "mean", "sd", "median", "q25", "q75", "min", "max", "mean_penalised",
)  # fmt: skip


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as one dictionary, a superset of nnU-Net's summary.json.

    nnU-Net's keys `metric_per_case`, `mean` and `foreground_mean` mean what they mean there; labels are strings.
    Beside them: `mean_penalised` and `foreground_mean_penalised`, `counts` per label (n_cases, n_both_empty, missed,
    false_alarms), `names`, `missing_predictions`, `failed`, `notes`, `settings`. Values may be NaN or infinite;
    `write_json` turns those into null.
    """
    labels, columns = evaluation.labels, evaluation.convention.columns
    mean = {t: {m: _mean(finite(evaluation, t, m)) for m in columns} for t in labels.targets}
    penalised = {t: {m: _mean(with_penalty(evaluation, t, m)) for m in columns} for t in labels.targets}
    return {
        "foreground_mean": _over_labels(mean, evaluation.convention),
        "foreground_mean_penalised": _over_labels(penalised, evaluation.convention),
        "mean": _with_keys(mean),
        "mean_penalised": _with_keys(penalised),
        "counts": {str(t): counts(evaluation, t) for t in labels.targets},
        "names": dict(zip(labels.keys, labels.names, strict=True)),
        "missing_predictions": list(evaluation.missing),
        "failed": [{"case": f.pair.case, "fold": f.pair.fold, "error": f.message} for f in evaluation.failures],
        "notes": list(evaluation.notes),
        "settings": {
            "written_by": f"nnunet_ext {__version__}",
            "nsd_tolerance_mm": evaluation.nsd_tolerance_mm,
            "ignore_label": labels.ignore,
            "convention": evaluation.convention.name,
            "conventions": evaluation.convention.describe(),
        },
        "metric_per_case": [_case_entry(result) for result in evaluation.cases],
    }


def write_results(evaluation: Evaluation, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write summary.json, per_case.csv and per_label.csv into `folder`, each atomically; return the summary.

    Raises:
        UserError: the folder cannot be written, or has a summary.json of somebody else.
    """
    check_output_folder(folder)
    folder = Path(folder)
    summary = summarise(evaluation)
    write_text(
        folder / "per_case.csv", _csv(("case", "fold", "label", "name", "metric", "value"), _case_rows(evaluation))
    )
    write_text(folder / "per_label.csv", _csv(PER_LABEL_COLUMNS, _label_rows(evaluation)))
    write_json(folder / "summary.json", summary)
    return summary


def check_output_folder(folder: str | os.PathLike[str]) -> None:
    """Make sure before hours of work that results can be written to `folder` without destroying nnU-Net's.

    Raises:
        UserError: no permission, or `folder` has a summary.json that this package did not write.
    """
    folder = Path(folder)
    existing = folder / "summary.json"
    if existing.is_file():
        try:
            ours = "written_by" in JsonObject.read(existing).object("settings").content
        except UserError:
            ours = False
        if not ours:
            raise UserError(f"{existing} is not from nnunet_ext evaluate and is kept; choose another folder with -o")
    above = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}; choose a folder you may write to with -o")


def format_table(evaluation: Evaluation) -> str:
    """The table for the terminal: one row per label, mean ± SD over cases, then the foreground mean."""
    unit = evaluation.convention.unit
    titles = {
        "Dice": ("Dice", 4),
        "HD95": (f"HD95 {unit}", 2),
        "NSD": (f"NSD@{evaluation.nsd_tolerance_mm:g}mm", 4),
        "ASSD": ("ASSD mm", 2),
    }
    shown = {metric: titles[metric] for metric in titles if metric in evaluation.convention.metrics}
    rows = [["label", "name", "cases", "missed", "false alarms", *(title for title, _ in shown.values())]]
    for target, name in zip(evaluation.labels.targets, evaluation.labels.names, strict=True):
        tally = counts(evaluation, target)
        cells = [str(target), one_line(name), str(tally["n_cases"] - tally["n_both_empty"])]
        cells += [str(tally["missed"]), str(tally["false_alarms"])]
        for metric, (_, digits) in shown.items():
            values = finite(evaluation, target, metric)
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}" if len(values) else "-")
        rows.append(cells)
    summary = summarise(evaluation)
    kinds = {"mean": "foreground_mean", "mean, penalised": "foreground_mean_penalised"}
    if not any(math.isinf(value) for value in evaluation.convention.one_empty.values()):
        del kinds["mean, penalised"]  # nothing is left to be charged
    for title, key in kinds.items():
        means = [summary[key][metric] for metric in shown]
        precision = [d for _, d in shown.values()]
        cells = ["-" if math.isnan(v) else f"{v:.{d}f}" for v, d in zip(means, precision, strict=True)]
        rows.append(["", title, "", "", "", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def counts(evaluation: Evaluation, target: Target) -> dict[str, int]:
    """How many cases, and in how many the structure is in neither map, only the reference, only the prediction."""
    states = [case.status(target) for case in evaluation.cases]
    return {
        "n_cases": len(states),
        "n_both_empty": states.count("both_empty"),
        "missed": states.count("missed"),
        "false_alarms": states.count("false_alarm"),
    }


def finite(evaluation: Evaluation, target: Target, metric: str) -> np.ndarray:
    """Values of one metric over the cases in which it is finite."""
    values = np.array([case.metrics[target][metric] for case in evaluation.cases], dtype=float)
    return values[np.isfinite(values)]


def with_penalty(evaluation: Evaluation, target: Target, metric: str) -> np.ndarray:
    """Values of one metric with each infinite distance replaced by that image's diagonal; NaN is left out."""
    values = np.array([case.metrics[target][metric] for case in evaluation.cases], dtype=float)
    diagonals = np.array([case.diagonal_mm for case in evaluation.cases])
    return np.where(np.isinf(values), diagonals, values)[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _over_labels(means: dict[Target, dict[str, float]], convention: Convention) -> dict[str, float]:
    columns = {m: np.array([means[t][m] for t in means]) for m in convention.columns}
    if convention.undefined_mean:
        return {m: float(values.mean()) for m, values in columns.items()}
    # A label that occurs nowhere has no mean; it must not make the mean over the others undefined.
    return {m: _mean(values[~np.isnan(values)]) for m, values in columns.items()}


def _with_keys(by_target: dict[Target, Any]) -> dict[str, Any]:
    return {str(target): value for target, value in by_target.items()}


def _case_entry(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.pair.case,
        "fold": result.pair.fold,
        "reference_file": str(result.pair.reference),
        "prediction_file": None if result.pair.prediction is None else str(result.pair.prediction),
        "image_diagonal_mm": result.diagonal_mm,
        "spacing_mm": list(result.spacing_mm),
        "reference_digest": result.reference_digest,
        "status": {str(target): result.status(target) for target in result.metrics},
        "metrics": _with_keys(result.metrics),
    }


def _case_rows(evaluation: Evaluation) -> list[list[Any]]:
    return [
        [
            case.pair.case,
            "" if case.pair.fold is None else case.pair.fold,
            target,
            name,
            metric,
            case.metrics[target][metric],
        ]
        for case in evaluation.cases
        for target, name in zip(evaluation.labels.targets, evaluation.labels.names, strict=True)
        for metric in evaluation.convention.columns
    ]


def _label_rows(evaluation: Evaluation) -> list[list[Any]]:
    rows = []
    for target, name in zip(evaluation.labels.targets, evaluation.labels.names, strict=True):
        tally = counts(evaluation, target)
        for metric in evaluation.convention.columns:
            values = finite(evaluation, target, metric)
            nan = float("nan")
            quartiles = np.percentile(values, [50, 25, 75, 0, 100]).tolist() if len(values) else [nan] * 5
            sd = float(values.std(ddof=1)) if len(values) > 1 else nan
            spread = [len(values), _mean(values), sd, *quartiles, _mean(with_penalty(evaluation, target, metric))]
            rows.append([target, name, metric, *tally.values(), *spread])
    return rows


def _csv(columns: tuple[str, ...], rows: list[list[Any]]) -> str:
    """Python writes `inf` and `nan`, which pandas, R and spreadsheets read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
