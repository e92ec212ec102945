"""UNETR++: the published outputs, equality with the step-by-step reference, any patch, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import fill_state_dict, make_input
from torch import nn

from nnunet_ext.architectures.unetrpp import UNETRPP, VARIANTS
from nnunet_ext.architectures.unetrpp.blocks import conv3x3x3, covariance, instance_norm_leaky_relu_
from nnunet_ext.architectures.unetrpp.epa import _SpatialAttention, spatial_attention
from nnunet_ext.architectures.unetrpp.geometry import MAX_TOKENS, fit_geometry
from nnunet_ext.architectures.unetrpp.plain import plain_forward
from nnunet_ext.models.unetrpp import MODEL

GOLDEN = Path(__file__).parent.parent / "golden"

TINY = {
    "dims": (8, 12, 16, 24),
    "depths": (1, 2, 1, 1),
    "decoder_depth": 1,
    "num_heads": 4,
    "feature_size": 4,
    "proj_sizes": (8, 8, 8, 4),
    "decoder_proj_size": 6,
}


def tiny(input_channels: int = 1, num_classes: int = 3, deep_supervision: bool = False, **kwargs) -> UNETRPP:
    """A network of a few thousand parameters, with random values so large that every part of it matters."""
    model = UNETRPP(input_channels, num_classes, deep_supervision, **{**TINY, **kwargs})
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        spread = 0.5 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        parameter.data = noise * spread + (parameter.dim() == 1)
    return model


def without_dropout(model: UNETRPP) -> UNETRPP:
    for module in model.modules():
        if isinstance(module, nn.Dropout3d):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("variant", ["synapse", "acdc"])
def test_outputs_of_the_official_code(variant):
    golden = np.load(GOLDEN / f"unetrpp_{variant}.npz")
    config = json.loads(str(golden["config"]))
    shapes = json.loads(str(golden["shapes"]))
    model = UNETRPP(1, config["kwargs"]["out_channels"], True, patch_size=config["img_size"], variant=variant).eval()
    # Names and their order are those of the official state_dict.
    assert [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()] == [
        (key, list(shape)) for key, shape in shapes.items()
    ]
    model.load_state_dict({key: torch.from_numpy(array) for key, array in fill_state_dict(shapes).items()})
    with torch.no_grad():
        outputs = model(torch.from_numpy(make_input(str(golden["input_name"]), tuple(golden["input_shape"]))))
    for i, (output, facts) in enumerate(zip(outputs, json.loads(str(golden["outputs"])), strict=True)):
        assert list(output.shape) == facts["shape"]
        # Single precision, its sums in another order than the published code's: some 1e-6 of the largest entry.
        step = facts["stride"]
        sampled = output[:, :, :: step[0], :: step[1], :: step[2]].numpy()
        assert np.abs(sampled - golden[f"out{i}_sub"]).max() <= 1e-4 * facts["absmax"]
        means, stds = output.mean((0, 2, 3, 4)).numpy(), output.std((0, 2, 3, 4), correction=0).numpy()
        assert np.abs(means - golden[f"out{i}_channel_mean"]).max() <= 1e-4 * facts["absmax"]
        assert np.abs(stds - golden[f"out{i}_channel_std"]).max() <= 1e-4 * facts["absmax"]


@pytest.mark.parametrize(
    "variant, patch_size, channels, classes, parameters, entries",
    [
        ("synapse", (64, 128, 128), 1, 14, 42_952_850, 636),
        ("tumor", (128, 128, 128), 4, 4, 42_647_604, 489),
        ("acdc", (16, 160, 160), 1, 4, 66_796_404, 888),
        ("lung", (32, 192, 192), 1, 2, 121_174_798, 888),
    ],
)
def test_sizes_of_the_four_published_networks(variant, patch_size, channels, classes, parameters, entries):
    with torch.device("meta"):
        model = UNETRPP(channels, classes, patch_size=patch_size, variant=variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("scramble", [True, False])
@pytest.mark.parametrize("variant", ["synapse", "acdc", "tumor"])
@pytest.mark.parametrize("batch, channels", [(1, 3), (2, 1)])
def test_outputs_and_gradients_equal_the_plain_computation(variant, scramble, training, batch, channels):
    torch.manual_seed(1)
    patch_size = (16, 16, 8)
    model = tiny(channels, 3, True, patch_size=patch_size, variant=variant, scramble=scramble).double().train(training)
    without_dropout(model)
    x = torch.randn(batch, channels, *patch_size, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    outputs, expected = model(x), plain_forward(model, x)
    weights = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, [x, *parameters], weights)
    expected_gradients = torch.autograd.grad(expected, [x, *parameters], weights)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-11)
    for name, gradient, wanted in zip(["input", *names], gradients, expected_gradients, strict=True):
        # The bound is on the largest entry: a norm makes some gradients zero up to rounding.
        assert (gradient - wanted).abs().max() <= 1e-9 * max(1.0, wanted.abs().max()), name


def test_scramble_changes_the_result():
    x = torch.randn(1, 1, 16, 16, 8)
    with torch.no_grad():
        scrambled, right = (tiny(patch_size=(16, 16, 8), scramble=s).eval()(x) for s in (True, False))
    assert (scrambled - right).abs().max() > 1e-3


def test_every_parameter_learns_and_state_dict_does_not_depend_on_deep_supervision():
    names = {}
    for deep_supervision in (True, False):
        model = tiny(patch_size=(16, 16, 8), deep_supervision=deep_supervision).train()
        outputs = model(torch.randn(2, 1, 16, 16, 8))
        assert isinstance(outputs, list) == deep_supervision
        sum(output.square().mean() for output in (outputs if deep_supervision else [outputs])).backward()
        # DistributedDataParallel fails on a parameter that requires a gradient and gets none.
        assert not [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        names[deep_supervision] = list(model.state_dict())
    assert names[True] == names[False]
    model.deep_supervision = True
    assert len(model.eval()(torch.randn(1, 1, 16, 16, 8))) == 3
    assert all(parameter.requires_grad for parameter in model.parameters())


PUBLISHED_STRIDES = {
    (64, 128, 128): ((2, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    (128, 128, 128): ((4, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    (16, 160, 160): ((1, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    (32, 192, 192): ((1, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
}


@pytest.mark.parametrize("patch_size", PUBLISHED_STRIDES)
def test_published_geometry_at_published_sizes(patch_size):
    geometry = fit_geometry(patch_size)
    assert geometry.strides == PUBLISHED_STRIDES[patch_size]
    assert geometry.padded == patch_size


@pytest.mark.parametrize(
    "patch_size",
    [(40, 56, 40), (28, 256, 256), (20, 320, 256), (128, 128, 128), (12, 56, 60), (112, 112, 128), (80, 192, 160),
     (40, 224, 192), (48, 192, 192), (96, 160, 160), (160, 192, 64), (7, 320, 320), (256, 20, 256)],
)  # fmt: skip
def test_planned_patches_are_not_padded(patch_size):
    geometry = fit_geometry(patch_size)
    assert geometry.padded == patch_size
    assert math.prod(geometry.grids[0]) <= MAX_TOKENS
    # Integer reductions, so that the targets of deep supervision line up with the outputs.
    assert all(p % r == 0 for reduction in geometry.reductions[:2] for p, r in zip(patch_size, reduction, strict=True))
    assert all(min(grid) >= 2 for grid in geometry.grids)


@pytest.mark.parametrize("patch_size", [(33, 33, 33), (17, 20, 9), (5, 64, 64), (10, 14, 18)])
def test_any_patch_runs_forward_and_backward(patch_size):
    model = tiny(2, 3, True, patch_size=patch_size).train()
    outputs = model(torch.randn(1, 2, *patch_size))
    assert tuple(outputs[0].shape) == (1, 3, *patch_size)
    # nnU-Net makes the targets by rounding the scaled patch.
    for output, scale in zip(outputs, model.deep_supervision_scales, strict=True):
        assert list(output.shape[2:]) == [round(s * p) for s, p in zip(scale, patch_size, strict=True)]
        assert output.is_contiguous() and torch.isfinite(output).all()
    sum(output.square().mean() for output in outputs).backward()


def test_padding_changes_nothing_inside_the_patch():
    """Padding by the network equals padding by hand with the geometry of the padded patch."""
    patch_size = (33, 18, 9)
    model = tiny(patch_size=patch_size).eval()
    padded = model.geometry.padded
    assert padded != patch_size
    by_hand = tiny(patch_size=padded, strides=model.geometry.strides).eval()
    by_hand.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, *patch_size)
    larger = torch.zeros(1, 1, *padded)
    larger[:, :, :33, :18, :9] = x
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_hand(larger)[:, :, :33, :18, :9])


def test_attention_stays_in_single_precision_under_autocast():
    seen = {}
    model = without_dropout(tiny(patch_size=(16, 16, 8), deep_supervision=True)).train()
    block = model.unetr_pp_encoder.stages[0][0]
    block.epa_block.register_forward_hook(lambda module, inputs, output: seen.update(attention=output.dtype))
    block.conv51.norm1.register_forward_hook(lambda module, inputs, output: seen.update(convolution=output.dtype))
    x = torch.randn(2, 1, 16, 16, 8)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
        loss = sum(output.float().square().mean() for output in found)
    assert seen == {"attention": torch.float32, "convolution": torch.bfloat16}
    assert model.geometry.grids[-1][0] == 2  # where the CPU's half-precision convolution is broken
    for output, wanted in zip(found, expected, strict=True):
        assert (output.float() - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [(40, 56, 40), (28, 256, 256), (20, 320, 256), (128, 128, 128)])
def test_planned_patches_forward_and_backward(patch_size):
    model = UNETRPP(1, 3, True, patch_size=patch_size, **MODEL.sizes["tiny"]).train()
    outputs = model(torch.randn(1, 1, *patch_size))
    assert [tuple(output.shape[2:]) for output in outputs] == [patch_size, *model.geometry.grids[:2]]
    sum(output.square().mean() for output in outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(1, 1, 8, 16, 16), (1, 1, 32, 16, 4), (1, 2, 16, 16, 8), (1, 16, 16, 8)])
def test_an_input_of_another_shape_is_refused_by_name(shape):
    # The first two have as many tokens as the network expects.
    with pytest.raises(
        ValueError, match=r"built for input \(batch, 1, 16, 16, 8\), not \(" + f"{shape[0]}, {shape[1]}"
    ):
        tiny(patch_size=(16, 16, 8)).eval()(torch.randn(shape))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"patch_size": (64, 64)}, "three positive sizes"),
        ({"patch_size": (16, 16, 0)}, "three positive sizes"),
        ({"variant": "brats"}, "no variant 'brats'.*tumor"),
        ({"dims": (8, 16, 24)}, "dims must have one entry"),
        ({"num_heads": 5}, "multiple of the number of heads"),
        ({"strides": ((2, 2, 2),) * 3}, "four triples"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNETRPP(1, 2, **{**TINY, "patch_size": (16, 16, 8), **arguments})


def test_variants_are_the_published_ones():
    assert set(VARIANTS) == {"auto", "synapse", "acdc", "lung", "tumor"}


@pytest.mark.parametrize("channels, grid", [(1, (16, 8, 8)), (3, (8, 8, 8)), (4, (10, 6, 4))])
def test_convolution_in_two_slabs_is_the_convolution(channels, grid):
    x = torch.randn(1, channels, *grid, requires_grad=True)
    weight = torch.randn(5, channels, 3, 3, 3, requires_grad=True)
    found, expected = conv3x3x3(x, weight), torch.nn.functional.conv3d(x, weight, padding=1)
    # Two orders of single-precision sums: 108 products at most, 1024 in the gradient of the weight.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(expected)
    for ours, wanted in zip(
        torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_and_activation_in_one_function(with_residual):
    """Also over several steps of its backward, and twice through a retained graph."""
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 3, 40, 30, 30, dtype=torch.float64) + 5).requires_grad_()
    residual = torch.randn_like(x).requires_grad_() if with_residual else None
    inputs = [tensor for tensor in (x, residual) if tensor is not None]
    found = instance_norm_leaky_relu_(x * 1.0, residual)
    normalised = torch.nn.functional.instance_norm(x)
    expected = torch.nn.functional.leaky_relu(normalised if residual is None else normalised + residual, 0.01)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(found, inputs, grad, retain_graph=True), wanted)


def test_dropout_of_spatial_attention(monkeypatch):
    """The same weights are dropped in forward and backward, at the given rate, and the kept ones are scaled up."""
    monkeypatch.setattr(_SpatialAttention, "ROWS", 5)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (12, 5, 5))
    # With values equal to one, an output is the sum of its kept weights, scaled: one on average.
    outputs = spatial_attention(torch.randn(2, 3000, 4), torch.randn(2, 5, 4), torch.ones(2, 5, 4), 2, 0.25)
    assert abs(outputs.mean().item() - 1) < 0.02

    def with_same_draws(query, key, value):
        torch.manual_seed(3)
        return spatial_attention(query, key, value, 2, 0.25)

    torch.autograd.gradcheck(with_same_draws, (query, key, value))
    heads = (x.view(2, -1, 2, 2).transpose(1, 2) for x in (query, key))
    weights = torch.matmul(next(heads), next(heads).transpose(2, 3)).softmax(-1)  # (B, h, N, P)
    # Values that are one in one of the P tokens show the weights themselves.
    shown = torch.stack(
        [with_same_draws(query, key, torch.eye(5, dtype=torch.float64)[p][None, :, None].expand(2, 5, 4))
         for p in range(5)], dim=-1,
    )[:, :, ::2].transpose(1, 2)  # fmt: skip
    dropped = shown == 0
    assert 0.15 < dropped.double().mean() < 0.35
    torch.testing.assert_close(shown[~dropped], weights[~dropped] / 0.75)


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_covariance_of_a_million_tokens_is_exact(channels):
    rows = torch.randn(1, 2**20 + 5, channels)
    exact = rows.double().transpose(1, 2) @ rows.double() / rows.shape[1]
    torch.testing.assert_close(covariance(rows).double(), exact, rtol=1e-5, atol=1e-5)
