"""UniverSeg against the published implementation's outputs, and against itself step by step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import fill_state_dict, make_input

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.architectures.universeg.plain import plain_forward
from nnunet_ext.checkpoints import build_from_official
from nnunet_ext.checkpoints.universeg import sizes

GOLDEN = Path(__file__).parent.parent / "golden"


def official(name: str):
    """Golden file, network with its weights, inputs."""
    golden = np.load(GOLDEN / f"universeg_{name}.npz")
    shapes = {key: tuple(shape) for key, shape in json.loads(str(golden["shapes"])).items()}
    state_dict = {key: torch.from_numpy(value) for key, value in fill_state_dict(shapes).items()}
    model = build_from_official("universeg", state_dict, **json.loads(str(golden["config"]))["kwargs"])
    assert list(model.state_dict()) == list(state_dict)
    inputs = []
    for description in json.loads(str(golden["inputs"])).values():
        x = make_input(description["make_input"], tuple(description["shape"]))
        inputs.append(torch.from_numpy((x > 0).astype("float32") if "transform" in description else x))
    return golden, model, inputs


@pytest.mark.parametrize("name", ["small", "asym"])
def test_golden_outputs_and_gradients(name):
    golden, model, inputs = official(name)
    with torch.inference_mode():
        alone = model(*inputs).numpy()
    output = model(*inputs)
    # Single precision, outputs around 1; gradients add up rounding over all entries and pixels.
    for found in (alone, output.detach().numpy()):  # in groups of entries, and at once
        np.testing.assert_allclose(found, golden["output"], rtol=0, atol=1e-5)
    output.square().mean().backward()
    expected = json.loads(str(golden["grad_norms"]))
    for key, parameter in model.named_parameters():
        if expected[key] is None:
            assert parameter.grad is None and not parameter.requires_grad, key
        else:
            assert parameter.grad is not None and parameter.requires_grad, key
            assert float(parameter.grad.norm()) == pytest.approx(expected[key], rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("entries", [1, 3, 11])
def test_equals_the_plain_network_to_the_border(entries):
    torch.manual_seed(0)
    model = UniverSeg([(6, 4), 5, (3, 7)]).double()
    target, images = torch.rand(2, 1, 24, 16).double(), torch.rand(2, entries, 1, 24, 16).double()
    labels = (torch.rand(2, entries, 1, 24, 16) > 0.5).double()
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = plain_forward(model, target, images, labels)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, used, weights)
    found = model(target, images, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, used, weights), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model(target, images, labels), expected.detach(), rtol=0, atol=1e-12)


def test_published_size():
    with torch.device("meta"):
        model = UniverSeg()
    assert sum(p.numel() for p in model.parameters()) == 1_182_785
    assert len(model.state_dict()) == 44
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 36_928


def test_sizes_follow_from_the_weights():
    _, model, _ = official("asym")
    assert sizes(model.state_dict()) == {
        "encoder_blocks": [(8, 12), (16, 16), (20, 24)],
        "decoder_blocks": [(16, 10), (6, 14)],
    }
    with pytest.raises(ValueError, match=r"no weights of UniverSeg: .* found conv\.weight"):
        sizes({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("target", "images", "labels", "message"),
    [
        ((1, 1, 20, 16), (1, 2, 1, 20, 16), (1, 2, 1, 20, 16), r"divisible by 8, not \(20, 16\)"),
        ((1, 2, 16, 16), (1, 2, 1, 16, 16), (1, 2, 1, 16, 16), r"expects a target \(B, 1, H, W\)"),
        ((2, 1, 16, 16), (1, 2, 1, 16, 16), (1, 2, 1, 16, 16), r"support_images must be \(2, 2, 1, 16, 16\)"),
        ((1, 1, 16, 16), (1, 2, 1, 16, 16), (1, 3, 1, 16, 16), r"support_labels must be \(1, 2, 1, 16, 16\)"),
        ((1, 1, 16, 16), (1, 0, 1, 16, 16), (1, 0, 1, 16, 16), "at least one entry"),
    ],
)
def test_wrong_shapes_are_named(target, images, labels, message):
    model = UniverSeg([2, 2, 2, 2])
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(target), torch.zeros(images), torch.zeros(labels))


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one decoder block fewer, not 3 and 1"):
        UniverSeg([4, 4, 4], [4])


def test_distributed_training_misses_no_gradient(tmp_path):
    """Without the frozen convolution, the second step would wait for a gradient that never comes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(UniverSeg([2, 2, 2]))
        for _ in range(2):
            support = torch.rand(1, 2, 1, 8, 8)
            model(torch.rand(1, 1, 8, 8), support, support).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
