"""Dice against the number of labelled examples, as a table and a picture."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.files import atomic_path, write_text
from nnunet_ext.reports.figures import COLOURS


@dataclass(frozen=True)
class CurvePoint:
    """Dice of one label at one support size: mean and standard deviation over the cases that hold it."""

    support_size: int
    label: str
    dice_mean: float
    dice_sd: float
    cases: int


def write_curve(points: Sequence[CurvePoint], folder: Path, title: str) -> None:
    """Write `support_curve.csv` and `support_curve.png` into the folder, atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(CurvePoint.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    write_text(folder / "support_curve.csv", buffer.getvalue())
    plot_curves({title: points}, folder / "support_curve.png")


def plot_curves(curves: dict[str, Sequence[CurvePoint]], path: str | os.PathLike[str]) -> None:
    """One panel per entry, one line per label, support size on a logarithmic axis."""
    import matplotlib

    # nnU-Net changes the style of the whole process for its own plots.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = _figure(curves)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def _figure(curves: dict[str, Sequence[CurvePoint]]) -> Figure:
    figure = Figure(figsize=(4.2 * len(curves) + 0.8, 3.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(curves), squeeze=False, sharey=True)[0])
    for axes, (title, points) in zip(panels, curves.items(), strict=True):
        labels = list(dict.fromkeys(point.label for point in points))
        for number, label in enumerate(labels):
            own = [point for point in points if point.label == label]
            sizes, dice = [p.support_size for p in own], [p.dice_mean for p in own]
            colour = "black" if label == "mean" else COLOURS[number % len(COLOURS)]
            axes.plot(sizes, dice, marker="o", markersize=4, color=colour, label=label)
        axes.set_xscale("log", base=2)
        shown = sorted({point.support_size for point in points})
        axes.set_xticks(shown, [str(size) for size in shown])
        axes.minorticks_off()
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("support size")
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("Dice")
    return figure
