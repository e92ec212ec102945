"""What a pipeline came to, in a few lines: the chosen run, and the table of the test set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json
from nnunet_ext.slurm.pipeline import Pipeline, Training, predictions


def outcome(pipeline: Pipeline) -> list[str]:
    """Lines for the terminal; what a pipeline without that step does not have is left out."""
    lines = []
    if chosen := _chosen(pipeline):
        lines.append(f"chosen by nnU-Net's rule, the mean Dice over the folds: {chosen}")
    if rows := [row for run in pipeline.runs if (row := _test_row(pipeline, run))]:
        lines.append("test set, mean over the labels (a missed structure counts: Dice 0, the image's diagonal):")
        table = [("trainer", "plans", "cases", "Dice", "HD95 mm", "missed"), *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            words, numbers = row[:2], row[2:]
            cells = [w.ljust(n) for w, n in zip(words, widths[:2], strict=True)]
            cells += [w.rjust(n) for w, n in zip(numbers, widths[2:], strict=True)]
            lines.append("  " + "  ".join(cells))
        lines += [f"  {predictions(pipeline, run) / 'evaluation'}" for run in pipeline.runs]
    report = Path(pipeline.folder, "report.html")
    return [*lines, *([f"report: {report}"] if report.is_file() else [])]


def _chosen(pipeline: Pipeline) -> str | None:
    """The run that the selection has chosen, and its Dice."""
    if pipeline.folds == ("all",):
        return None
    found = _read(Path(pipeline.results, pipeline.dataset, "inference_information.json"))
    try:
        best = found["best_model_or_ensemble"]
        model, dice = best["selected_model_or_models"][0], float(best["result_on_crossval_pre_pp"])
        return f"{model['trainer']} {model['plans_identifier']} ({dice:.3f})"
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _test_row(pipeline: Pipeline, run: Training) -> tuple[str, ...] | None:
    if pipeline.images is None or pipeline.references is None:
        return None
    found = _read(predictions(pipeline, run) / "evaluation" / "summary.json")
    try:
        mean, counts = found["foreground_mean_penalised"], list(found["counts"].values())
        missed = sum(int(label["missed"]) for label in counts)
        scores = f"{float(mean['Dice']):.3f}", f"{float(mean['HD95']):.2f}"
        return run.trainer, run.plans, str(counts[0]["n_cases"]), *scores, str(missed)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _read(file: Path) -> Any:
    try:
        return read_json(file)
    except UserError:
        return None
