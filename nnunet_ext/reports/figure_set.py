"""Which plots a comparison gets."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from nnunet_ext.json_object import LARGEST
from nnunet_ext.reports.comparison import FEWEST, MEAN, Comparison
from nnunet_ext.reports.plots import MOST_DOTS, bar_plot, box_plot, curve_plot, difference_plot, volume_plot
from nnunet_ext.reports.resources import COLUMNS, resources_of

# Colours of the style sheet; more methods share them.
COLOUR_COUNT = 8
# Dots on the whole page, half a megabyte; many labels and methods share them.
_ALL_DOTS = 40_000
_CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "pseudo_dice": "pseudo Dice"}
_COSTS = ("seconds_per_epoch", "seconds_per_case", "peak_memory_gib", "parameters", "gmacs")


def legend(data: Comparison) -> str:
    """The methods and their colours."""
    entries = (
        f'<span><i class="swatch c{i % COLOUR_COUNT}"></i>{escape(method)}</span>'
        for i, method in enumerate(data.methods)
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def score_plots(data: Comparison) -> str:
    """Boxes with all points per label, and Dice against the volume of each label."""
    boxes, volumes = [], []
    clouds_drawn = len(data.methods) * len(data.labels) * (len(data.metrics) + 1)
    most = min(max(_ALL_DOTS // clouds_drawn, 50), MOST_DOTS)
    for metric in data.metrics:
        for label in data.labels:
            values = [
                (
                    i % COLOUR_COUNT,
                    method,
                    np.array(list(data.in_units(data.per_case[method, label, metric.key]).values())),
                )
                for i, method in enumerate(data.methods)
            ]
            if any(len(own) for *_, own in values):
                boxes.append(box_plot(f"{metric.heading}, {label}", values, metric, most))
    keys = dict(zip((name for name in data.labels if name != MEAN), data.runs[0].labels, strict=True))
    dice = data.metrics[0]
    for label, key in keys.items():
        clouds = []
        for i, run in enumerate(data.runs):
            points = [
                (run.cases[case].metrics[key]["volume_ref_ml"], value)
                for case, value in data.per_case[run.name, label, dice.key].items()
                if not math.isnan(value)
            ]
            points = [(volume, value) for volume, value in points if volume > 0]
            if points:
                clouds.append((i % COLOUR_COUNT, *map(np.array, zip(*points, strict=True))))
        if clouds:
            volumes.append(volume_plot(f"{dice.heading} against volume, {label}", clouds, dice, most))
    fewer = f"<p>At most {most} points per box are drawn, evenly by rank.</p>" if len(data.units) > most else ""
    block = f'{fewer}{legend(data)}<div class="plots">{"".join(boxes)}</div>'
    return block + (f'<h3>Small structures</h3><div class="plots">{"".join(volumes)}</div>' if volumes else "")


def difference_plots(data: Comparison) -> str:
    """Every method against the first, case by case."""
    plots = []
    for metric in data.metrics:
        for i, method in enumerate(data.methods[1:], start=1):
            new, old = data.paired_units(method, data.methods[0], data.overall, metric.key)
            if len(new) >= FEWEST:
                title = f"{metric.heading}: {method} − {data.methods[0]}"
                plots.append(difference_plot(title, new - old, i % COLOUR_COUNT, data.unit))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def curve_plots(data: Comparison) -> str:
    """Losses and pseudo Dice of the training logs, folds averaged."""
    plots = []
    for name, title in _CURVES.items():
        curves = []
        for i, run in enumerate(data.runs):
            logged = [fold.log.curves[name] for fold in run.folds if fold.log]
            # A diverged training logs nan.
            folds = [{epoch: v for epoch, v in curve.items() if abs(v) <= LARGEST} for curve in logged]
            folds = [curve for curve in folds if curve]
            if folds:
                curves.append((i % COLOUR_COUNT, folds))
        if curves:
            plots.append(curve_plot(title, curves))
    if not plots:
        return ""
    return (
        "<p>From the training logs: mean over the folds, and their range. Pseudo Dice is nnU-Net's, on patches.</p>"
        f'{legend(data)}<div class="plots">{"".join(plots)}</div>'
    )


def cost_plots(data: Comparison) -> str:
    """Bars of what was recorded for at least one method."""
    facts = [resources_of(run) for run in data.runs]
    plots = []
    for key in _COSTS:
        title, write = COLUMNS[key]
        bars = [
            (i % COLOUR_COUNT, method, float(value), write(value))
            for i, (method, own) in enumerate(zip(data.methods, facts, strict=True))
            if (value := getattr(own, key)) is not None
        ]
        if bars:
            plots.append(bar_plot(title, bars))
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""
