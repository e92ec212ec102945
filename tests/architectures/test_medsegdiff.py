"""MedSegDiff-V2: each part of the paper against a known answer, and the whole in 2D and 3D with its ablations."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from nnunet_ext.architectures.medsegdiff import MedSegDiffV2
from nnunet_ext.architectures.medsegdiff.condition import UncertainSpatialAttention, anchor
from nnunet_ext.architectures.medsegdiff.denoiser import TimedBlock, timestep_embedding
from nnunet_ext.architectures.medsegdiff.ss_former import (
    NeuralBandPassFilter,
    SSFormer,
    filtered_affinity,
    patch_size_for,
)

GOLDEN = Path(__file__).parent.parent / "golden"
GRIDS = {2: (16, 24), 3: (8, 12, 16)}


def network(axes: int = 3, classes: int = 3, **arguments) -> MedSegDiffV2:
    """A few thousand parameters with values so large that every part matters, zeros at the start included."""
    strides = [[1] * axes, [2] * axes, [2] * axes]
    sizes = {
        "width": 8, "max_width": 16, "denoiser_width": 4, "embedding_dim": 8, "semantic_dim": 6, "semantic_blocks": 2,
        "filter_channels": 4, "semantic_patch": [2] + [1] * (axes - 1),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MedSegDiffV2(2, classes, strides=strides, kernel_sizes=[[3] * axes] * 3, **{**sizes, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(axes: int, batch: int = 2, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, x_t = (torch.randn(batch, n, *GRIDS[axes], generator=generator) for n in (2, classes))
    return image, x_t, torch.tensor([3, 700])[:batch]


def test_time_embedding_is_the_published():
    """Ours is exact (`test_precision.py`); the published is of single-precision t exp(x), x = -log(10000) i / 64.

    Those angles are off by the rounding of x (twice), of exp and of the product: t exp(x) (2 |x| + 3) 2^-24 in all,
    which is largest at x = 0. Sine and cosine add the last digit of both.
    """
    t = np.array([0, 1, 500, 999])
    golden = np.load(GOLDEN / "diffusion.npz")["timestep_embedding_128"]
    off = np.abs(timestep_embedding(torch.from_numpy(t), 128).numpy() - golden)
    assert (off <= (3 * t + 3)[:, None] * 2**-24).all()


def test_block_begins_as_its_shortcut_at_every_second_voxel():
    block, x = TimedBlock(8, 16, 4, (3, 3, 3), (1, 2, 2)), torch.randn(2, 8, 3, 6, 8)
    expected = F.conv3d(x, block.shortcut.weight, block.shortcut.bias, stride=(1, 2, 2))
    assert (block(x, torch.randn(2, 4)) - expected).abs().max() < 1e-5  # eight products, summed in another order


# Anchor condition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_uncertain_spatial_attention_is_the_formula(axes):
    attend = UncertainSpatialAttention(3, axes)
    sigmas = (0.6, 1.0, 1.7)
    with torch.no_grad():
        attend.log_sigma.copy_(torch.tensor(sigmas).log())
    feature = torch.randn(2, 3, *GRIDS[axes])
    smooth = np.stack(
        [
            [gaussian_filter(f.numpy(), sigma, mode="constant", radius=3) for f, sigma in zip(one, sigmas, strict=True)]
            for one in feature
        ]
    )
    f_anc = np.maximum(smooth, feature.numpy())
    weight, bias = (p.detach().numpy() for p in (attend.project.weight, attend.project.bias))
    attention = 1 / (1 + np.exp(-(np.einsum("bc...,c->b...", f_anc, weight.reshape(-1)) + bias)))
    # Single precision: sums of 7 products per axis, and the reference's own.
    assert np.abs(attend(feature).detach().numpy()[:, 0] - attention).max() < 1e-5
    first = torch.randn(2, 5, *GRIDS[axes])
    assert (
        np.abs(anchor(attend(feature), first).detach().numpy() - first.numpy() * (1 + attention[:, None])).max() < 1e-4
    )


def test_narrow_gaussian_leaves_the_feature_alone():
    attend = UncertainSpatialAttention(2, 3)
    with torch.no_grad():
        attend.log_sigma.fill_(math.log(1e-3))
    feature = torch.randn(1, 2, 6, 7, 8)
    # Exactly: exp(-(1000)^2 / 2) is zero.
    assert torch.equal(torch.maximum(attend.smooth(feature), feature), feature)


# Semantic condition ---------------------------------------------------------------------------------------------------


def test_filter_is_between_0_and_1_and_follows_the_time_step():
    band_pass = NeuralBandPassFilter(8, 4)
    first, second = band_pass(timestep_embedding(torch.tensor([10, 900]), 8), (3, 5))
    assert first.shape == (15, 15) and 0 < first.min() and first.max() < 1
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 3, 2)])
def test_affinity_filtered_in_fourier_space_is_the_written_out_transform(grid):
    m, d = math.prod(grid), 5
    generator = np.random.default_rng(0)
    query, key = generator.standard_normal((2, m, d))
    band = generator.random((m, m))
    places = np.array([*product(*(range(n) for n in grid))]) / np.array(grid)
    frequencies = np.array([*product(*(range(n) for n in grid))])
    dft = np.exp(-2j * np.pi * frequencies @ places.T)  # (frequency, place)
    affinity = (dft @ query) @ (dft @ key).T * band
    inverse = dft.conj().T / m
    expected = inverse @ affinity @ inverse.T
    ours = filtered_affinity(*(torch.from_numpy(a)[None] for a in (query, key)), grid, torch.from_numpy(band)[None])[0]
    assert np.abs(ours.numpy() - expected.real).max() < 1e-5
    # Taking the real part is the same as a filter that treats a frequency and its negative alike.
    mirror = [
        [*product(*(range(n) for n in grid))].index(tuple(-i % n for i, n in zip(f, grid, strict=True)))
        for f in frequencies
    ]
    even = inverse @ ((dft @ query) @ (dft @ key).T * (band + band[np.ix_(mirror, mirror)]) / 2) @ inverse.T
    assert np.abs(even.imag).max() < 1e-12
    assert np.abs(even.real - expected.real).max() < 1e-12


def test_filter_of_ones_is_plain_attention():
    query, key = torch.randn(2, 2, 15, 4)
    ours = filtered_affinity(query, key, (3, 5), torch.ones(1, 15, 15))
    # Three transforms in single precision; products of four normal numbers are up to 10.
    assert (ours - filtered_affinity(query, key, (3, 5), None)).abs().max() < 1e-4


def test_large_maps_are_cut_into_larger_patches_and_put_together_again():
    assert patch_size_for((16, 16), 128) == (2, 1)
    assert patch_size_for((5, 7, 5), 128) == (1, 2, 1)
    assert patch_size_for((4, 4, 4), 128) == (1, 1, 1)
    former = SSFormer(3, 4, 8, (2, 2), dim=6, blocks=1, filter_channels=2)
    e = torch.randn(1, 4, 5, 7)
    filters = former.filters(torch.randn(1, 8), e.shape[2:])
    assert former(former.tokens(torch.randn(1, 3, 5, 7)), e, filters).equal(e), "begins without influence"
    torch.nn.init.normal_(former.unpatchify.weight)
    changed = former(former.tokens(torch.randn(1, 3, 5, 7)), e, filters) - e
    assert changed.shape == e.shape and changed[..., -1, -1].abs().min() > 0


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_both_losses_reach_both_networks(axes):
    model = network(axes)
    image, x_t, t = inputs(axes)
    condition = model.condition(image)
    assert condition.logits.shape == x_t.shape
    model.denoise(x_t, t, condition).square().sum().backward()
    head = {"condition_model.head.seg_layers.weight", "condition_model.head.seg_layers.bias"}
    assert {name for name, p in model.named_parameters() if p.grad is None} == head
    # Biases that a norm takes away again have no influence.
    weights = {n: p for n, p in model.named_parameters() if n not in head and not n.endswith("bias")}
    assert not [name for name, p in weights.items() if p.grad.abs().max() < 1e-4]
    model.condition(image).logits.square().sum().backward()
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in head)


def test_stem_in_two_parts_is_one_convolution_of_image_and_mask():
    model = network()
    image, x_t, _ = inputs(3)
    stem = model.denoiser
    weight = torch.cat((stem.stem_mask.weight, stem.stem_image.weight), 1)
    whole = F.conv3d(torch.cat((x_t, image), 1), weight, stem.stem_mask.bias, padding=1)
    # Sums of 135 products, up to 10, in single precision and another order.
    assert (whole - stem.stem_mask(x_t) - model.condition(image).image).abs().max() < 1e-4


@pytest.mark.parametrize("axes", [2, 3])
def test_one_time_step_for_all_samples_is_each_on_its_own(axes):
    model = network(axes).eval()
    image, x_t, _ = inputs(axes)
    with torch.no_grad():
        condition = model.condition(image[:1])
        together = model.denoise(x_t, torch.tensor([70]), condition)
        alone = torch.cat([model.denoise(x[None], torch.tensor([70]), condition) for x in x_t])
    # A batch may be convolved by another kernel, in another order of single-precision sums.
    assert (together - alone).abs().max() < 1e-4


def test_kept_filters_follow_the_weights():
    model, other = network().eval(), network(anchor="u-sa").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.5
    image, x_t, _ = inputs(3)
    t = torch.tensor([70])
    with torch.inference_mode():
        before = model.denoise(x_t, t, model.condition(image))
        assert model.denoise(x_t, t, model.condition(image)).equal(before)
        model.load_state_dict(other.state_dict())
        assert model.denoise(x_t, t, model.condition(image)).equal(other.denoise(x_t, t, other.condition(image)))


def test_ablations_leave_out_what_they_name():
    image, x_t, t = inputs(2)
    parts = {
        ("none", "ss-former+nbp"): lambda n: n.startswith("anchor."),
        ("spatial", "ss-former+nbp"): lambda n: n == "anchor.log_sigma",
        ("u-sa", "none"): lambda n: n.startswith("ss_former."),
        ("u-sa", "ss-former"): lambda n: ".filter." in n,
    }
    every = dict(network(2).named_parameters())
    for (kind, semantic), belongs in parts.items():
        model = network(2, anchor=kind, semantic=semantic)
        left_out = {n for n in every if n not in dict(model.named_parameters())}
        assert left_out == {n for n in every if belongs(n)} and left_out
        assert model.denoise(x_t, t, model.condition(image)).shape == x_t.shape
    hidden = network(2, show_image=False)
    assert hidden.condition(image).image is None and hidden.denoise(x_t, t, hidden.condition(image)).isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="anchor must be one of none, spatial, u-sa, not 'usa'"):
        network(anchor="usa")
    with pytest.raises(ValueError, match="strides beginning with ones"):
        MedSegDiffV2(1, 2, strides=[[2, 2], [2, 2]], kernel_sizes=[[3, 3]] * 2)


def test_parameters_of_the_published_size():
    strides = [[1] * 3] + [[2] * 3] * 5
    with torch.device("meta"):
        model = MedSegDiffV2(4, 4, strides=strides, kernel_sizes=[[3] * 3] * 6, semantic_patch=[1, 1, 1])
    assert sum(p.numel() for p in model.parameters()) == 46_182_465
