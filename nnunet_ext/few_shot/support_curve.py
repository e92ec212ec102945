"""Dice against support size: does more support help, and from where on does it not?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.architectures.universeg.few_shot import empty_share
from nnunet_ext.reports.support_curve import CurvePoint
from nnunet_ext.support.pool import Pool

SIZES = (1, 2, 4, 8, 16, 32, 64)
# Support entries that pass through the network at once, over all queries of a batch.
_ENTRIES = 64


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
