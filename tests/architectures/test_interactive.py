"""Early prompting's network: what it computes of a patch, which backbones it takes, nnU-Net's own encoder."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_ext import models
from nnunet_ext.architectures.interactive import InteractiveNetwork
from nnunet_ext.architectures.interactive.geometry import residual_encoder
from nnunet_ext.plans.network import arguments_for_patch

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def tiny(**arguments) -> InteractiveNetwork:
    torch.manual_seed(0)
    return InteractiveNetwork(1, 5, **{"strides": STRIDES, "features": 4, "blocks": [1], **arguments})


def test_what_lies_outside_of_the_image_is_background_and_does_not_count():
    network = tiny().eval()
    x = torch.zeros(1, 8, 40, 24, 24)
    x[..., 2:17, :, 5:20] = torch.randn(1, 8, 15, 24, 15)
    with torch.no_grad():
        logits, inside = network(x), network.backbone(x[..., 2:18, :, 5:21].contiguous())
        torch.testing.assert_close(logits[..., 2:18, :, 5:21], inside)
        assert (logits[:, 1, 18:] < logits[:, 0, 18:]).all() and logits.shape == (1, 2, 40, 24, 24)
        # The image may lie anywhere in the patch.
        moved = network(x.roll((7, 2), (2, 4)))
        torch.testing.assert_close(moved[..., 9:25, :, 7:23], inside)
        assert (network(torch.zeros_like(x)).argmax(1) == 0)[..., 16:, :, :].all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("segmamba", {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "hidden_size": 8}),
        ("unetrpp", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "feature_size": 4}),
    ],
)
def test_other_networks_of_plans_are_its_backbone(name, arguments):
    patch, strides = [32, 32, 32], [[1, 1, 1], *[[2, 2, 2]] * 3]
    row = models.find(name)
    own = arguments_for_patch(name, "tiny", patch, strides) | arguments
    network = InteractiveNetwork(1, deep_supervision=False, network=row.network, arguments=own)
    x = torch.zeros(1, 8, *patch)
    x[..., :20, :, :] = torch.randn(1, 8, 20, 32, 32)
    with torch.no_grad():
        assert network.eval()(x).shape == (1, 2, *patch)
    # A network that is built for one patch is shown all of it.
    assert (network.multiples is None) == ("patch_size" in own)


def test_deep_supervision_is_a_switch():
    network = tiny(deep_supervision=True).train()
    outputs = network(torch.randn(1, 8, 16, 16, 16))
    assert [tuple(o.shape[1:]) for o in outputs] == [(2, 16, 16, 16), (2, 8, 8, 8)]
    network.deep_supervision = False
    assert network(torch.randn(1, 8, 16, 16, 16)).shape == (1, 2, 16, 16, 16) and not network.deep_supervision
    assert tiny().state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("spacing", ((1.0, 1.0, 1.0), (10.0, 1.4, 1.4), (1.0, 3.0, 1.0)))
def test_kernels_are_nnunets(spacing):
    _, strides, kernels, _, _ = get_pool_and_conv_props(list(spacing), [64, 96, 96], 4, 999999)
    found = residual_encoder([list(map(int, stride)) for stride in strides], 32, [1, 3, 4, 6])
    assert found["kernel_sizes"] == [list(kernel) for kernel in kernels]
    assert found["n_blocks_per_stage"][:5] == [1, 3, 4, 6, 6] and found["features_per_stage"][-1] == 320
