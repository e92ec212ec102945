"""Which labelled slices support a query.

Candidates are given by arrays, one entry per slice; all functions return indices into them, without repetition and at
most `size`. Random draws come from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STRATEGIES = ("balanced", "random", "similar", "position")
# Pixels per side of the thumbnails whose correlation is the similarity of two slices.
_THUMBNAIL = 16


class SupportLeak(ValueError):
    """A case would support its own segmentation."""


def at_random(candidates: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Any of the candidates, all with the same chance."""
    return rng.permutation(candidates)[:size]


def balanced(candidates: np.ndarray, cases: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One random slice of every case in random order, then a second one of each, and so on."""
    shuffled = rng.permutation(candidates)
    rounds: np.ndarray = np.zeros(len(shuffled), dtype=int)
    seen: dict[int, int] = {}
    for i, case in enumerate(cases[shuffled].tolist()):
        seen[case] = seen.get(case, -1) + 1
        rounds[i] = seen[case]
    return shuffled[np.argsort(rounds, kind="stable")][:size]


def nearest(candidates: np.ndarray, distances: np.ndarray, size: int) -> np.ndarray:
    """The candidates of least distance, nearest first; `distances` has one entry per slice, candidate or not."""
    return candidates[np.argsort(distances[candidates], kind="stable")][:size]


def thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, C, s, s) -> (N, features): small copies of mean 0 and length 1, so that a product is a correlation."""
    n, channels, size, _ = images.shape
    step = max(size // _THUMBNAIL, 1)
    kept = size // step * step
    cut: np.ndarray = images[:, :, :kept, :kept].astype(np.float32)
    small = cut.reshape(n, channels, kept // step, step, kept // step, step)
    flat = small.mean(axis=(3, 5)).reshape(n, -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def refuse_leak(support_cases: Iterable[str], query_case: str) -> None:
    """The guard: call it with the cases of a support set and the case it is used on.

    Raises:
        SupportLeak: the case is among its own supports.
    """
    if query_case in set(support_cases):
        raise SupportLeak(f"{query_case} is in its own support set; its score would be worthless")
