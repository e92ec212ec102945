"""Curves under simulated interactions: a picture, and a section of the page of a comparison."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_path, read_json
from nnunet_ext.reports.figures import COLOURS

_REMEDY = "give the clicks.json that nnunet_ext clicks wrote"
_PANEL, _HEIGHT = 3.4, 3.9


def write_interaction_curves(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a PNG, atomically: a panel for each user, a colour for each model, means over labels.

    Args:
        summary: as `nnunet_ext.clicks.curve_folder.write_results` makes it.
        path: of the picture.
    """
    import matplotlib

    # nnU-Net changes the style of the whole process for its own plots.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = _figure(summary)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def _figure(summary: Mapping[str, Any]) -> Figure:
    models, counts = summary["models"], summary["interactions"]
    users = [user for user in summary["users"] if any(user in found for found in models.values())]
    figure = Figure(figsize=(_PANEL * max(len(users), 1) + 0.6, _HEIGHT), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, max(len(users), 1), sharey=True, squeeze=False)[0])
    handles: dict[str, Any] = {}
    for axes, user in zip(panels, users, strict=False):
        for number, (name, found) in enumerate(models.items()):
            if user not in found:
                continue
            for metric, style in (("Dice", "-"), ("NSD", ":")):
                curve = [found[user]["mean"][metric][str(n)] for n in counts]
                (handles[f"{name}, {metric}"],) = axes.plot(
                    counts, curve, style, color=COLOURS[number % len(COLOURS)], marker="o", markersize=4
                )
        axes.set_title(summary["users"][user], fontsize=10)
        axes.set_xlabel("interactions")
        axes.set_xticks(counts)
        axes.set_ylim(0, 1)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean over cases and labels")
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False, fontsize=9
        )
    note = f"simulated users see the reference; NSD tolerance {summary['nsd_tolerance_mm']:g} mm"
    figure.suptitle(f"{summary['title']}\n{note}", fontsize=10)
    return figure


def read_interaction_curves(path: Path) -> dict[str, Any]:
    """The content of a clicks.json.

    Raises:
        UserError: it is something else.
    """
    content = read_json(path)
    try:
        interactions_section(content)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise UserError(f"{path} holds no curves of interactions; {_REMEDY}") from None
    return content


def interactions_section(summary: Mapping[str, Any]) -> str:
    """HTML of a section: what these figures are, and a row per user and model."""
    counts = summary["interactions"]
    thresholds = next(_means(summary))[2]["interactions to"]
    head = "".join(f"<th>Dice {int(n)}</th>" for n in counts) + "<th>AUC</th>"
    head += "".join(f"<th>NSD {int(n)}</th>" for n in counts)
    head += "".join(f"<th>to {float(t):.2f}</th>" for t in thresholds) + "<th>s each</th>"
    rows, last = [], None
    for user, name, means in _means(summary):
        if user != last:
            width = 2 * len(counts) + len(thresholds) + 3
            words = escape(str(summary["users"][user]))
            rows.append(f'<tr class="group"><th class="text" colspan="{width}" scope="rowgroup">{words}</th></tr>')
            last = user
        cells = [f"{float(means['Dice'][str(n)]):.3f}" for n in counts] + [f"{float(means['Dice AUC']):.3f}"]
        cells += [f"{float(means['NSD'][str(n)]):.3f}" for n in counts]
        for threshold in thresholds:
            needed, reached = (float(means[key][threshold]) for key in ("interactions to", "reached"))
            cells.append(f"{needed:.1f}<small>{reached:.0%}</small>")
        cells.append(f"{float(means['seconds each']):.2f}")
        rows.append(f'<tr><td class="text">{escape(name)}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        f'<div class="note" role="note"><strong>{escape(str(summary["note"]))}</strong></div>'
        f"<p>{escape(str(summary['title']))}, {len(summary['cases'])} cases, through the session that viewers run. "
        f"Means over objects, then labels, after so many interactions of one kind. NSD tolerance "
        f"{float(summary['nsd_tolerance_mm']):g} mm. “to”: interactions until that Dice, {int(counts[-1])} where it is "
        f"not reached; below it, the share of objects that reach it.</p>"
        f'<div class="scroll"><table id="interactions"><thead><tr><th class="text">model</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _means(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(user, model, means over labels), by user."""
    found = [
        (user, name, users[user]["mean"])
        for user in summary["users"]
        for name, users in summary["models"].items()
        if user in users
    ]
    if not found:
        raise ValueError("no curves")
    yield from found
