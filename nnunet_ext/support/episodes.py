"""Training episodes: a query and its support set of one task (algorithm 1 of UniverSeg, arXiv:2304.06131).

A task is drawn anew for every episode, first the data set, then channel and label, so that a large data set does not
crowd out the others. Query and supports come from different cases wherever there is more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nnunet_ext.support.augment import Chances, augment_entries, augment_task, warp
from nnunet_ext.support.pool import Pool


@dataclass(frozen=True)
class Mixture:
    """What episodes are made of, as shares of all episodes or of their supports.

    Attributes:
        synthetic: episodes of random shapes.
        empty_queries: queries that do not hold the label; 3D volumes have many.
        similar: episodes whose supports are the slices most similar to the query, as at prediction.
        empty_supports: at most this share of the supports does not hold the label; it is drawn from 0 up to here.
    """

    synthetic: float = 0.1
    empty_queries: float = 0.15
    similar: float = 0.5
    empty_supports: float = 0.25


@dataclass(frozen=True)
class Batch:
    """Episodes of one support size.

    Attributes:
        target, target_label: (B, 1, s, s).
        support_images, support_labels: (B, S, 1, s, s).
        tasks: index of each episode's task in the pool of queries, -1 for a synthetic one.
        keys: the case of each query, for messages.
    """

    target: Tensor
    target_label: Tensor
    support_images: Tensor
    support_labels: Tensor
    tasks: tuple[int, ...]
    keys: tuple[str, ...]


class Episodes(Iterator[Batch]):
    """Endless batches; the same seed gives the same ones.

    Args:
        pools: slices of queries, one pool per data set.
        supports: slices of supports, pool by pool; the same objects where both come from the same cases.
        batch_size: episodes per batch.
        support_sizes: least and largest; small sizes are drawn as often as large ones.
        chances: of augmentation; None for none.
        mixture: of the episodes.
        seed: of everything drawn.
        device: where batches are augmented and end up.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        supports: Sequence[Pool],
        *,
        batch_size: int,
        support_sizes: tuple[int, int],
        chances: Chances | None,
        mixture: Mixture,
        seed: int,
        device: torch.device,
    ):
        self.pools, self.supports = list(pools), list(supports)
        self.batch_size, self.support_sizes = batch_size, support_sizes
        self.chances, self.mixture, self.device = chances, mixture, device
        self.rng = np.random.default_rng(seed)
        self.generator = Generator().manual_seed(seed)
        # Tasks that at least one query and one support hold.
        self.tasks = [
            [t for t in range(len(pool.tasks)) if pool.present[:, t].any() and other.present[:, t].any()]
            for pool, other in zip(self.pools, self.supports, strict=True)
        ]
        if not any(self.tasks):
            raise ValueError("no task has both a query and a support")
        self.usable = [i for i, tasks in enumerate(self.tasks) if tasks]

    def __next__(self) -> Batch:
        least, largest = self.support_sizes
        # Log-uniform: as many episodes with 1 to 3 supports as with 4 to 15.
        size = min(int(math.exp(self.rng.uniform(math.log(least), math.log(largest + 1)))), largest)
        episodes = [self._episode(size) for _ in range(self.batch_size)]
        images = torch.stack([episode[0] for episode in episodes])
        masks = torch.stack([episode[1] for episode in episodes])
        return Batch(
            target=images[:, 0],
            target_label=masks[:, 0],
            support_images=images[:, 1:],
            support_labels=masks[:, 1:],
            tasks=tuple(episode[2] for episode in episodes),
            keys=tuple(episode[3] for episode in episodes),
        )

    def _episode(self, size: int) -> tuple[Tensor, Tensor, int, str]:
        """Images and masks (1 + size, 1, s, s), query first; task; case of the query."""
        number = self.usable[self.rng.integers(len(self.usable))]
        pool, supports = self.pools[number], self.supports[number]
        if self.rng.random() < self.mixture.synthetic:
            images, masks = synthetic_episode(1 + size, pool.images.shape[-1], self.generator, self.device)
            task, key = -1, "synthetic"
        else:
            task = int(self.rng.choice(self.tasks[number]))
            channel = int(self.rng.integers(pool.images.shape[1]))
            query, chosen = self._draw(pool, supports, task, size)
            images, masks = (
                torch.cat((own[query : query + 1, c], others[torch.as_tensor(chosen), c]))[:, None].to(self.device)
                for own, others, c in ((pool.images, supports.images, channel), (pool.masks, supports.masks, task))
            )
            images, masks = images.float() / 255, masks.float() / 255
            key = pool.case_names[pool.cases[query]]
            task = task if number == 0 else -1
        if self.chances is not None:
            images, masks = augment_entries(images, masks, self.chances, self.generator)
            images, masks = augment_task(images, masks, self.chances, self.generator)
        return images, masks, task, key

    def _draw(self, pool: Pool, supports: Pool, task: int, size: int) -> tuple[int, np.ndarray]:
        """Indices of the query in `pool` and of its supports in `supports`."""
        held = pool.present[:, task]
        wants_empty = self.rng.random() < self.mixture.empty_queries and not held.all()
        candidates = np.flatnonzero(held != wants_empty)
        query = int(candidates[self.rng.integers(len(candidates))])
        name = pool.case_names[pool.cases[query]]
        # With a single case the other slices of that case are all there is.
        others = {supports.case_names[case] for case in supports.cases[supports.present[:, task]]} - {name}
        without = name if others else None
        strategy = "similar" if self.rng.random() < self.mixture.similar else "balanced"
        look = (pool.thumbnails[query], float(pool.positions[query]))
        empty = int(self.rng.uniform(0, self.mixture.empty_supports) * size)
        chosen = np.concatenate(
            [
                supports.draw(task, n, self.rng, strategy=strategy, query=look, without_case=without, with_label=label)
                for n, label in ((size - empty, True), (empty, False))
            ]
        )
        if without is None and supports is pool and len(chosen) > 1:
            chosen = chosen[chosen != query]
        # Repeated evenly when there are too few, which leaves the mean nearly as it is.
        return query, np.resize(self.rng.permutation(chosen), size)


def synthetic_episode(entries: int, size: int, generator: Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random shapes of random grey values, deformed differently in every entry; the task is one of the shapes."""
    shapes = int(torch.randint(3, 7, (), generator=generator))
    coarse = int(torch.randint(3, 9, (), generator=generator))
    noise = torch.randn(1, shapes, coarse, coarse, generator=generator)
    regions = F.interpolate(noise, (size, size), mode="bicubic", align_corners=False).argmax(dim=1)
    areas = torch.bincount(regions.flatten(), minlength=shapes)
    task = int(torch.argsort(areas)[shapes // 2])  # neither the smallest nor the largest
    grey = torch.rand(shapes, generator=generator)
    images = grey[regions][None].to(device).repeat(entries, 1, 1, 1)
    masks = (regions == task).float()[None].to(device).repeat(entries, 1, 1, 1)
    images, masks = warp(images, masks, entries, 1.0, generator, strength=1.5)
    texture = torch.randn(entries, 1, size, size, generator=generator).to(device) * 0.05
    return (images + texture).clamp(0, 1), masks
