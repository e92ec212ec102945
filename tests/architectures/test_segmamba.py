"""SegMamba against the published implementation's outputs, and on every kind of grid nnU-Net plans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import fill_state_dict, make_input

from nnunet_ext.architectures.segmamba import SegMamba
from nnunet_ext.checkpoints import build_from_official
from nnunet_ext.ops.order import reorder

GOLDEN = Path(__file__).parent.parent / "golden"

TINY = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8), "hidden_size": 8}


def golden_state_dict():
    golden = np.load(GOLDEN / "segmamba_a.npz")
    shapes = {k: tuple(s) for k, s in json.loads(str(golden["shapes"])).items()}
    return golden, {k: torch.from_numpy(v) for k, v in fill_state_dict(shapes).items()}


def test_golden_output_and_encoder_features():
    golden, state_dict = golden_state_dict()
    config = json.loads(str(golden["config"]))
    model = build_from_official(
        "segmamba",
        state_dict,
        in_channels=config["in_chans"],
        num_classes=config["out_chans"],
        depths=config["depths"],
        dims=config["feat_size"],
        hidden_size=config["hidden_size"],
    )
    assert list(model.state_dict()) == list(state_dict)
    x = torch.from_numpy(make_input(str(golden["input_name"]), tuple(golden["input_shape"])))
    with torch.inference_mode():
        output = model(x)
        features = model.vit(x)
    # Single precision, its sums in another order than the published code's: some 1e-6 of the largest entry.
    assert np.abs(output.numpy() - golden["output"]).max() <= 1e-4 * golden["absmax"]
    for i, feature in enumerate(features):
        expected = golden[f"vit{i}"]
        assert np.abs(feature.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), f"vit{i}"


def test_published_size():
    with torch.device("meta"):
        model = SegMamba(4, 4)
    assert sum(p.numel() for p in model.parameters()) == 67_416_196
    assert len(model.state_dict()) == 291


def test_mismatch_names_what_differs():
    _, state_dict = golden_state_dict()
    state_dict["extra.weight"] = state_dict.pop("out.conv.conv.bias")
    config = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64), "hidden_size": 64}
    with pytest.raises(ValueError) as caught:
        build_from_official("segmamba", state_dict, in_channels=2, num_classes=3, **config)
    report = str(caught.value)
    assert "1 missing: out.conv.conv.bias" in report
    assert "1 unexpected: extra.weight" in report
    assert "vit.downsample_layers.0.0.weight (file (8, 1, 7, 7, 7), network (8, 2, 7, 7, 7))" in report


@pytest.mark.parametrize(
    ("grid", "strides"),
    [
        ((32, 32, 32), [[2, 2, 2]] * 4),
        ((20, 28, 20), [[2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]]),
        ((7, 64, 64), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]]),  # padded along the slices
        ((33, 30, 17), [[2, 2, 2]] * 4),  # padded everywhere
        ((64, 48), [[2, 2]] * 4),
        ((50, 37), [[2, 2]] * 4),
    ],
    ids=str,
)
def test_any_grid_trains_every_parameter(grid, strides):
    torch.manual_seed(0)
    model = SegMamba(2, 3, True, strides=strides, supervised_stages=3, **TINY).train()
    x = torch.randn(2, 2, *grid)
    outputs = model(x)
    assert len(outputs) == len(model.deep_supervision_scales) == 4
    assert outputs[0].shape == (2, 3, *grid)
    for output, scale in zip(outputs, model.deep_supervision_scales, strict=True):
        # nnU-Net makes the targets so.
        assert list(output.shape[2:]) == [round(full * s) for full, s in zip(grid, scale, strict=True)]
    sum((o.float() ** 2).mean() for o in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    model.deep_supervision = False
    with torch.inference_mode():
        assert model.eval()(x).shape == (2, 3, *grid)


def test_padding_changes_nothing_where_there_is_none():
    """Official weights see official grids; and the state_dict does not depend on the deep-supervision switch."""
    switched = SegMamba(1, 2, True, supervised_stages=2, **TINY)
    plain = SegMamba(1, 2, False, supervised_stages=2, **TINY)
    assert list(switched.state_dict()) == list(plain.state_dict())
    assert not any("seg_layers" in key for key in SegMamba(1, 2, **TINY).state_dict())


def test_inter_slice_order():
    x = torch.arange(6)[None]  # two slices of three voxels
    assert reorder(x, "slices", 2).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert torch.equal(reorder(reorder(x, "slices", 2), "slices", 3), x)


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = SegMamba(1, 2, **TINY).train()
    x = torch.randn(1, 1, 16, 16, 32)
    gradients = []
    for flag in (False, True):
        model.vit.gradient_checkpointing = flag
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=lambda m, key=key: f"{key}: {m}")


def test_mamba_is_float32_under_autocast():
    torch.manual_seed(0)
    layer = SegMamba(1, 2, **TINY).vit.stages[0][0].mamba
    tokens = torch.randn(1, 64, 4)
    expected = layer(tokens, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(tokens, 4), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": (4, 8)}, "dims must have one entry for each of the four stages"),
        ({"strides": [[2, 2, 2], [2, 2], [2, 2], [2, 2]]}, "strides must be"),
        ({"supervised_stages": 4}, "supervised_stages must be 0 to 3"),
        ({"deep_supervision": True}, "needs supervised_stages"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegMamba(1, 2, **arguments)


def test_bad_inputs_are_named():
    model = SegMamba(2, 2, **TINY)
    with pytest.raises(ValueError, match=r"built for input \(batch, 2, D, H, W\), not \(1, 1, 16, 16, 16\)"):
        model(torch.zeros(1, 1, 16, 16, 16))
    official_slices = SegMamba(1, 2, num_slices=(64, 32, 16, 8), **TINY).eval()
    with pytest.raises(ValueError, match="num_slices=8 does not divide the 2 tokens"):
        official_slices(torch.randn(1, 1, 32, 16, 16))
