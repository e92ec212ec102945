"""What each method cost, from its run.json and training logs; what was not recorded stays None."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from nnunet_ext.reports.folds import span, values_of
from nnunet_ext.reports.runs import Method


@dataclass(frozen=True)
class Resources:
    """One method.

    Attributes:
        parameters: learnable parameters.
        gmacs: multiply-adds (1e9) of predicting one patch.
        peak_memory_gib: largest of the folds: allocated on the GPU, or resident on the CPU.
        seconds_per_epoch: median over all epochs of all folds.
        training_hours: sum over the folds.
        seconds_per_case: of prediction with mirroring, mean over the folds' final validation.
        folds: number of folds with a training log or record.
        epochs, iterations, batch_size, patch_size, precision: the schedule; every value that a fold had, ascending.
        device: GPU or processor; every one that a fold used.
        software: versions of the first fold.
    """

    parameters: int | None
    gmacs: float | None
    peak_memory_gib: float | None
    seconds_per_epoch: float | None
    training_hours: float | None
    seconds_per_case: float | None
    folds: int
    epochs: tuple[int, ...]
    iterations: tuple[int, ...]
    batch_size: tuple[int, ...]
    patch_size: tuple[tuple[int, ...], ...]
    precision: tuple[str, ...]
    device: tuple[str, ...]
    software: dict[str, str]


def resources_of(run: Method) -> Resources:
    """Read what the folds of a run recorded."""
    records = run.records
    hardware = [record.get("hardware", {}) for record in records]
    devices = [facts.get("gpu") or facts.get("processor") for facts in hardware]
    epochs = [list(f.log.curves["seconds"].values()) if f.log else f.record["epoch_seconds"] if f.record else []
              for f in run.folds]  # fmt: skip
    seconds = [s for fold in epochs for s in fold]
    memory = [r["peak_memory_bytes"] for r in records if "peak_memory_bytes" in r]
    return Resources(
        parameters=_first(records, "parameters"),
        gmacs=_first(records, "gmacs_per_patch"),
        peak_memory_gib=max(memory) / 2**30 if memory else None,
        seconds_per_epoch=median(seconds) if seconds else None,
        training_hours=sum(seconds) / 3600 if seconds else None,
        seconds_per_case=_seconds_per_case(run),
        folds=sum(bool(fold) for fold in epochs),
        epochs=values_of(run, "epochs"),
        iterations=values_of(run, "iterations"),
        batch_size=values_of(run, "batch_size"),
        patch_size=values_of(run, "patch_size"),
        precision=values_of(run, "precision"),
        device=tuple(dict.fromkeys(device for device in devices if device)),
        software={k: v for k, v in (records[0].get("software", {}) if records else {}).items() if v},
    )


def _seconds_per_case(run: Method) -> float | None:
    """Of run.json where it was recorded, else from the log's time stamps, which leave out the last case."""
    folds = []
    for fold in run.folds:
        validation = (fold.record or {}).get("validation")
        if validation and validation["cases"]:
            folds.append(validation["seconds"] / validation["cases"])
        elif fold.log and fold.log.seconds_per_case:
            folds.append(mean(fold.log.seconds_per_case))
    return mean(folds) if folds else None


def _first(records: list[dict[str, Any]], key: str) -> Any:
    return next((record[key] for record in records if record.get(key) is not None), None)


def _number(digits: int, unit: str = "") -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}{unit}"


# Title and how to write the value, in the order of the table.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", lambda n: f"{n / 1e6:.2f} M"),
    "gmacs": ("GMACs per patch", _number(1)),
    "peak_memory_gib": ("peak memory", _number(2, " GiB")),
    "seconds_per_epoch": ("time per epoch", lambda s: f"{s:.1f} s" if s < 120 else f"{s / 60:.1f} min"),
    "training_hours": ("training, all folds", _number(2, " h")),
    "seconds_per_case": ("prediction per case", _number(2, " s")),
    "epochs": ("epochs", span),
    "iterations": ("iterations", span),
    "batch_size": ("batch", span),
    "patch_size": ("patch", span),
    "precision": ("precision", span),
    "device": ("device", span),
}


def in_words(resources: Resources) -> dict[str, str]:
    """{title: text} of every column; `–` where nothing was recorded."""
    texts = {}
    for key, (title, write) in COLUMNS.items():
        value = getattr(resources, key)
        texts[title] = "–" if value in (None, ()) else write(value)
    return texts
