"""Every model's training step on fake CUDA tensors: what lies on the wrong device is refused there.

Fake tensors have a device, a type and a shape but no data, so this needs no GPU; half precision is autocast's, and of
the scan's and the convolution's Triton kernels all that is asked for are shapes. Without a GPU autograd does not start,
so this ends at the loss.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext import models
from nnunet_ext.plans.estimate import dice_ce
from nnunet_ext.plans.network import arguments_for_patch

PATCH = [32, 64, 64]
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


def to_fake_cuda(network: nn.Module) -> None:
    """Parameters and buffers; what a network keeps elsewhere stays on the meta device it was built on."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    table[name] = nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new


@pytest.mark.parametrize("name", sorted(models.planned()))
def test_step(name, monkeypatch):
    for variable in ("SCAN", "CONVOLUTION"):
        monkeypatch.setenv(f"NNUNET_EXT_{variable}", "triton")
    monkeypatch.setattr("nnunet_ext.ops.triton_probe.why_not", lambda device, probe: None)
    row = models.find(name)
    axes = max(row.axes)
    patch, strides = PATCH[-axes:], [stride[-axes:] for stride in STRIDES]
    arguments = arguments_for_patch(name, next(iter(row.sizes)), patch, strides)
    training = models.load(row.step)
    loss = dice_ce if row.loss is None else models.load(row.loss)
    with torch.device("meta"):
        network = row.build(2, 3, row.deep_supervision, arguments).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake_cuda(network)
        batch = training.example(network, torch.empty(2, 2, *patch, device="cuda"), 3)
        with torch.autocast("cuda", torch.float16):
            found = training.step(network, batch, loss)
    assert found.shape == () and found.device.type == "cuda" and found.dtype == torch.float32
