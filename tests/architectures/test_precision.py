"""Features of large angles are their exact values rounded once: the same on every processor and under autocast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_ext.architectures.medsegdiff.denoiser import timestep_embedding
from nnunet_ext.architectures.precision import double_device
from nnunet_ext.architectures.sam_med3d.prompt_encoder import PositionEmbedding

# Half the distance of single-precision numbers just below 1, and what double precision adds to it.
ROUNDED = 2**-25 + 1e-11


def time_features() -> tuple[torch.Tensor, np.ndarray]:
    t = torch.tensor([0, 1, 500, 999])
    angles = t.numpy()[:, None] * 10000.0 ** (-np.arange(64) / 64)
    return timestep_embedding(t, 128), np.concatenate([np.cos(angles), np.sin(angles)], 1)


def position_features() -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    embedding = PositionEmbedding(32)
    matrix = embedding.positional_encoding_gaussian_matrix
    matrix.copy_(4 * torch.randn(matrix.shape, generator=generator))
    position = torch.rand(50, 3, generator=generator)
    angles = 2 * math.pi * ((2 * position.double().numpy() - 1) @ matrix.double().numpy())
    return embedding(position), np.concatenate([np.sin(angles), np.cos(angles), np.sin(angles)], 1)


@pytest.mark.parametrize("features", [time_features, position_features])
def test_features_are_the_exact_ones_rounded(features):
    found, exact = features()
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - exact).max() < ROUNDED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features()[0], found)


def test_double_precision_is_computed_where_there_is_one():
    assert double_device(torch.device("mps")) == torch.device("cpu")
    assert double_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
