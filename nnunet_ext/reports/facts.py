"""What reviewers ask first about a method: how long it was trained, in which folds, and how large it is."""

from __future__ import annotations

from typing import Any

from nnunet_ext import models
from nnunet_ext.reports.folds import folds_in_words, span, trained_folds, values_of
from nnunet_ext.reports.resources import resources_of
from nnunet_ext.reports.runs import Method

# nnU-Net's own schedule.
_EPOCHS, _ITERATIONS = 1000, 250


def facts_about(run: Method) -> str:
    """Training length against nnU-Net's, folds, and parameters against the published network's; "" if unknown."""
    return "; ".join(filter(None, (_length(run), _folds(run), _parameters(run))))


def _length(run: Method) -> str:
    epochs, iterations = values_of(run, "epochs"), values_of(run, "iterations")
    if not epochs:
        return ""
    if not iterations:
        return f"trained {span(epochs)} of nnU-Net's {_EPOCHS} epochs"
    totals = sorted({a * b for a, b in _pairs(run)})
    return f"trained {' to '.join(f'{n:,}' for n in _ends(totals))} of nnU-Net's {_EPOCHS * _ITERATIONS:,} iterations"


def _pairs(run: Method) -> list[tuple[int, int]]:
    """(epochs, iterations per epoch) of every evaluated fold that recorded both."""
    settings = [(fold.record or {}).get("settings", {}) for fold in trained_folds(run)]
    return [(s["epochs"], s["iterations"]) for s in settings if "epochs" in s and "iterations" in s]


def _ends(numbers: list[Any]) -> list[Any]:
    return numbers if len(numbers) < 2 else [numbers[0], numbers[-1]]


def _folds(run: Method) -> str:
    folds = [fold.number for fold in trained_folds(run)]
    return folds_in_words(folds, run.planned_folds) if folds else ""


def _parameters(run: Method) -> str:
    own = resources_of(run).parameters
    if own is None or run.identity is None:
        return ""
    trainers = (trainer for model in models.rows() for trainer in model.trainers)
    published = next((t.parameters for t in trainers if t.name == run.identity[0]), None)
    text = f"{own / 1e6:.1f} M parameters"
    return text if published is None else f"{text}, published {published / 1e6:.1f} M"
