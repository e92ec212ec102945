"""A picture of how segmentation improves with clicks."""

from __future__ import annotations

import os
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.files import atomic_path
from nnunet_ext.reports.figures import COLOURS

_MARKERS = {"uniform": "o", "centre": "s"}
_TITLES = {"uniform": "clicks anywhere in the error", "centre": "clicks amid the largest error"}


def write_click_curves(summary: dict[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Write `click_curves(summary)` as a PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    figure = click_curves(summary, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def click_curves(summary: dict[str, Any], title: str = "") -> Figure:
    """Dice and NSD over the number of clicks: one panel per user, one colour per class.

    Args:
        summary: as `nnunet_ext.clicks.scores.summarise` makes it.
        title: words above the panels.
    """
    clicks, users = summary["clicks"], summary["users"]
    figure = Figure(figsize=(4.4 * len(users), 3.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(users), sharey=True, squeeze=False)[0])
    for axes, (user, scores) in zip(panels, users.items(), strict=True):
        for k, (name, values) in enumerate(scores["classes"].items()):
            colour = COLOURS[k % len(COLOURS)]
            for metric, style in (("Dice", "-"), ("NSD", ":")):
                curve = [values[metric][str(n)] for n in clicks]
                axes.plot(
                    clicks, curve, style, color=colour, marker=_MARKERS[user], markersize=4, label=f"{name}, {metric}"
                )
        axes.set_title(_TITLES[user], fontsize=10)
        axes.set_xlabel("clicks")
        axes.set_xticks(clicks)
        axes.set_ylim(0, 1)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean over cases")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    tolerance = summary["nsd_tolerance_mm"]
    note = f"simulated users see the reference; NSD tolerance {tolerance:g} mm"
    figure.suptitle(f"{title}\n{note}" if title else note, fontsize=10)
    return figure
