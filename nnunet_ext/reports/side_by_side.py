"""The picture papers show: the same slice of a case as image, with the reference, and with every method's result."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_ext.files import atomic_path
from nnunet_ext.reports.comparison import Comparison
from nnunet_ext.reports.figures import COLOURS, crop, worst_median_best
from nnunet_ext.reports.overlays import read_scored_case

# Of the colour over the image; the anatomy stays visible.
_OPACITY = 0.55


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        title: its name and why it is shown.
        image: (y, x) slice.
        reference: (y, x) labels.
        predictions: method -> (y, x) labels, and the Dice of the whole case.
        aspect: height of a pixel over its width.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    predictions: dict[str, tuple[np.ndarray, float]]
    aspect: float


def rows_of(data: Comparison, images: Path | None, references: Path | None) -> list[Row]:
    """The cases with the worst, the median and the best Dice, each the mean over methods.

    Each is shown in the axial slice with most of the reference, so that no method chooses what is looked at.

    Raises:
        UserError: a file is not there, or cannot be drawn.
    """
    scores = {run.name: data.per_case[run.name, data.overall, "Dice"] for run in data.runs}
    mean = {case: float(np.mean([values[case] for values in scores.values()])) for case in data.cases}
    rows = []
    for role, name in worst_median_best(mean).items():
        drawn = {
            run.name: read_scored_case(run, run.cases[name], images, references, scores[run.name][name], math.nan)
            for run in data.runs
        }
        first = next(iter(drawn.values()))
        index = int(np.argmax((first.reference > 0).sum(axis=(1, 2))))
        _, height, width = first.spacing_mm
        # The box of what any method or the reference has.
        boxes = [crop(case) for case in drawn.values()]
        plane = (index, *(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in (1, 2)))
        predictions = {method: (case.prediction[plane], case.dice) for method, case in drawn.items()}
        slices = first.image.shape[0]
        where = "" if slices == 1 else f"\nslice {index + 1} of {slices}"
        title = f"{role}: {name}{where}"
        rows.append(Row(title, first.image[plane], first.reference[plane], predictions, height / width))
    return rows


def side_by_side_figure(rows: Sequence[Row], labels: Mapping[str, Sequence[int]]) -> Figure:
    """One row per case, one column each for the image, the reference and every method.

    Args:
        rows: from top to bottom, with the same methods.
        labels: name to the label values it consists of, without background; later ones lie on top.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("side_by_side_figure got no rows; expected at least one")
    methods = list(rows[0].predictions)
    columns = 2 + len(methods)
    shape = rows[0].image.shape
    tallest = min(1.6, max(0.6, rows[0].aspect * shape[0] / shape[1]))
    figure = Figure(figsize=(2.1 * columns, (2.1 * tallest + 0.35) * len(rows) + 0.5), facecolor="white",
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for number, (axes, row) in enumerate(zip(grid, rows, strict=True)):
        low, high = np.percentile(row.image, (1, 99.5))
        grey = np.clip((row.image - low) / ((high - low) or 1), 0, 1)
        shown = [("image", None, math.nan), ("reference", row.reference, math.nan)]
        shown += [(method, *row.predictions[method]) for method in methods]
        for one, (name, mask, dice) in zip(axes, shown, strict=True):
            one.imshow(painted(grey, mask, labels), aspect=row.aspect, interpolation="nearest")
            one.set_xticks([])
            one.set_yticks([])
            one.set_title(name if number == 0 else "", fontsize=9)
            one.set_xlabel("" if math.isnan(dice) else f"Dice {dice:.3f}", fontsize=9)
        axes[0].set_xlabel(row.title, fontsize=7, color="0.35")
    handles = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=6, label=n) for k, n in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    return figure


def painted(grey: np.ndarray, mask: np.ndarray | None, labels: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(y, x, 3) from 0 to 1: a grey slice (y, x) from 0 to 1 with its labels in colour."""
    colours = np.repeat(grey[..., None].astype(float), 3, axis=-1)
    if mask is None:
        return colours
    # Later regions lie on top of those they are part of.
    over = np.full((*mask.shape, 3), np.nan)
    for k, values in enumerate(labels.values()):
        over[np.isin(mask, values)] = to_rgb(COLOURS[k % len(COLOURS)])
    drawn = ~np.isnan(over[..., 0])
    colours[drawn] = (1 - _OPACITY) * colours[drawn] + _OPACITY * over[drawn]
    return colours


def write_side_by_side(rows: Sequence[Row], labels: Mapping[str, Sequence[int]], path: str | os.PathLike[str]) -> None:
    """Write `side_by_side_figure(rows, labels)` as a PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    figure = side_by_side_figure(rows, labels)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
