"""Dice against support size: does more support help, and from where on does it not?"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.files import atomic_path, write_text
from nnunet_ext.inference.few_shot import empty_share
from nnunet_ext.support.pool import Pool

SIZES = (1, 2, 4, 8, 16, 32, 64)
# Support entries that pass through the network at once, over all queries of a batch.
_ENTRIES = 64


@dataclass(frozen=True)
class CurvePoint:
    """Dice of one label at one support size: mean and standard deviation over the cases that hold it."""

    support_size: int
    label: str
    dice_mean: float
    dice_sd: float
    cases: int


@torch.inference_mode()
def support_curve(
    core: UniverSeg,
    queries: Pool,
    supports: Pool,
    *,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    device: torch.device | None = None,
) -> list[CurvePoint]:
    """Segment the queries with random supports, balanced over cases, of each size.

    As at prediction, a fifth of the supports does not hold the label. The supports of a query at one size are among
    those at the next, so a difference is not one of luck. Sizes for which there are not enough supports are left out.
    Dice is that of a case, over all its slices in `queries` and in the network's grid, where the network has a pixel's
    logit above 0.

    Args:
        core: the network, in evaluation mode.
        queries: slices to segment.
        supports: slices that support; a case never supports itself.
        sizes: support sizes.
        seed: of the draws.
        device: where the network is.

    Returns:
        Points for all sizes, label by label, and then the mean over the labels ("mean").
    """
    device = device or next(core.parameters()).device
    scores: dict[tuple[int, int], dict[int, float]] = {}
    for task in range(len(queries.tasks)):
        rng = np.random.default_rng(seed)
        names = [queries.case_names[case] for case in queries.cases]
        held, empty = (
            [supports.draw(task, max(sizes), rng, without_case=name, with_label=label) for name in names]
            for label in (True, False)
        )
        for size in sizes:
            without = min(empty_share(size), *map(len, empty))
            if size - without > min(map(len, held)):
                continue
            chosen = [np.concatenate((a[: size - without], b[:without])) for a, b in zip(held, empty, strict=True)]
            found = _segment(core, queries, supports, task, chosen, device)
            true = queries.masks[:, task].numpy() > 127
            for case in np.unique(queries.cases):
                mine = queries.cases == case
                if true[mine].any():
                    overlap = (found[mine] & true[mine]).sum()
                    dice = 2 * overlap / (found[mine].sum() + true[mine].sum())
                    scores.setdefault((size, task), {})[int(case)] = float(dice)
    points = [_point(size, queries.tasks[task].name, list(s.values())) for (size, task), s in scores.items()]
    for size in sorted({size for size, _ in scores}):
        of_size = [s for (other, _), s in scores.items() if other == size]
        if len(of_size) == len({task for _, task in scores}) > 1:
            cases = sorted({case for s in of_size for case in s})
            means = [float(np.mean([s[case] for s in of_size if case in s])) for case in cases]
            points.append(_point(size, "mean", means))
    return points


def _point(size: int, label: str, dice: list[float]) -> CurvePoint:
    return CurvePoint(size, label, round(float(np.mean(dice)), 4), round(float(np.std(dice)), 4), len(dice))


def _segment(
    core: UniverSeg, queries: Pool, supports: Pool, task: int, chosen: list[np.ndarray], device: torch.device
) -> np.ndarray:
    """(n, s, s) bool: what the network marks in each query with its own supports, channels averaged."""
    batch = max(_ENTRIES // len(chosen[0]), 1)
    marked = []
    for start in range(0, len(queries), batch):
        rows = torch.as_tensor(np.stack(chosen[start : start + batch]))

        def unit(x: Tensor) -> Tensor:
            return x.to(device).float() / 255

        logits = [
            core(
                unit(queries.images[start : start + batch, c : c + 1]),
                unit(supports.images[rows, c])[:, :, None],
                unit(supports.masks[rows, task])[:, :, None],
            ).float()
            for c in range(queries.images.shape[1])
        ]
        marked.append((torch.stack(logits).mean(dim=0)[:, 0] > 0).cpu().numpy())
    return np.concatenate(marked)


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


def _figure(curves: dict[str, Sequence[CurvePoint]]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nnunet_ext.reports.figures import COLOURS

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
