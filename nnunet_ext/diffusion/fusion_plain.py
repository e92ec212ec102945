"""STAPLE voxel by voxel, as its equations have it: what `fusion.py` is compared with in tests."""

from __future__ import annotations

import numpy as np


def staple_plain(labels: np.ndarray, iterations: int = 10_000) -> np.ndarray:
    """`staple(labels).labels` for (R, *grid) whole numbers from 0, with every voxel in every sum; slow."""
    votes = labels.reshape(len(labels), -1)
    binary = votes.max() <= 1
    truths = np.array([0, 1]) if binary else np.unique(votes)
    if len(np.unique(votes)) == 1:
        return labels[0].copy()
    said = (votes[:, :, None] == truths).astype(float)  # (R, voxels, L)
    shares, prior = said.mean(axis=0), said.mean(axis=(0, 1))
    if binary:
        theta = np.einsum("rvj,vl->rjl", said, shares) / shares.sum(axis=0)
    else:
        top = shares == shares.max(axis=1, keepdims=True)
        tied = top.sum(axis=1) > 1
        theta = np.einsum("rvj,vl->rjl", said[:, ~tied], top[~tied].astype(float))
        for j in range(len(truths) - 1):
            if truths[j + 1] == truths[j] + 1:  # ITK counts voxels without a majority here; see `fusion.py`
                theta[:, j + 1, 0] += said[:, tied, j].sum(axis=1)
        theta /= np.maximum(theta.sum(axis=2, keepdims=True), 1.0)
    for _ in range(iterations):
        weights = _weights(said, prior, theta)
        updated = np.einsum("rvj,vl->rjl", said, weights) / np.maximum(weights.sum(axis=0), 1e-300)
        change, theta = np.abs(updated - theta).max(), updated
        if change < (1e-7 if binary else 1e-5):
            break
    weights = _weights(said, prior, theta)
    best = weights.max(axis=1, keepdims=True)
    clear = (best[:, 0] > 0) & ((weights >= best * (1 - 1e-9)).sum(axis=1) == 1)
    winners = np.where(clear, weights.argmax(axis=1), shares.argmax(axis=1))
    return truths[winners].astype(labels.dtype).reshape(labels.shape[1:])


def _weights(said: np.ndarray, prior: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """(voxels, L)."""
    weights = prior * np.prod(np.einsum("rvj,rjl->rvl", said, theta), axis=0)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
