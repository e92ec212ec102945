"""Memory of one training step, computed without running it: for any network, patch and batch.

The step (forward, loss, backward) runs on fake tensors, which have shapes and types but no data. All storages that
are alive at the same time are added up, as they are made and freed: parameters, gradients, what autograd saves for the
backward pass and what exists in between. The optimiser's state is added to that. What an operation needs only while it
runs is not seen.

Measured on a CPU in single precision (benchmarks/memory.py), the sum is 0.94 to 1.01 of the real peak's growth for six
networks at two sizes each and 0.87 to 1.00 for six of MONAI's, so nothing is added or multiplied there. `on_gpu` sets
aside what a GPU needs besides.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What fake tensors raise for a network that asks for a value: its step can only be computed.
LOOKS_AT_VALUES = (DataDependentOutputException, DynamicOutputShapeException)

# (network, image) -> loss
Step = Callable[[nn.Module, Tensor], Tensor]

# Of a GPU's memory, not for tensors: the driver's context and the libraries' workspaces, and blocks that PyTorch's
# allocator holds but cannot use. Chosen with care, not measured: no GPU was at hand.
CONTEXT_BYTES, FRAGMENTATION = 700_000_000, 1.1


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Attributes:
        parameters: weights and buffers of the network.
        optimiser: its state.
        gradients: of the parameters, as many as exist when most memory is in use; often none.
        activations: everything else at that moment: images, activations saved for the backward pass, intermediate
            results.
    """

    parameters: int
    optimiser: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.parameters + self.optimiser + self.gradients + self.activations

    @property
    def fixed(self) -> int:
        """The part that does not depend on the batch."""
        return self.parameters + self.optimiser


def on_gpu(step_bytes: float) -> float:
    """Bytes a GPU needs to hold a step of `step_bytes`."""
    return CONTEXT_BYTES + FRAGMENTATION * step_bytes


def fits_gpu(gpu_bytes: float) -> float:
    """Bytes a step may have on a GPU of `gpu_bytes`: the inverse of `on_gpu`."""
    return (gpu_bytes - CONTEXT_BYTES) / FRAGMENTATION


def training_step_memory(
    build: Callable[[], nn.Module],
    input_shape: Sequence[int],
    step: Step,
    *,
    optimiser_slots: int,
    half: bool = False,
) -> StepMemory:
    """Memory of a training step at its peak, once the optimiser has its state.

    Args:
        build: makes the network.
        input_shape: (batch, channels, *patch) of the image.
        step: what a trainer does from image to loss, targets included.
        optimiser_slots: tensors of its size that the optimiser keeps for each trained parameter.
        half: activations of convolutions and matrix products in 16 bits (autocast), as nnU-Net trains on GPUs.

    Raises:
        ValueError: the network cannot take such input; the message is the network's.
    """
    try:
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with fakes:
            network = sketch(build)
        with fakes:
            return _counted(network, input_shape, step, optimiser_slots, half)
    except LOOKS_AT_VALUES:
        return _counted(build(), input_shape, step, optimiser_slots, half)


def _counted(
    network: nn.Module, input_shape: Sequence[int], step: Step, optimiser_slots: int, half: bool
) -> StepMemory:
    network.train()
    with _Live() as live:
        _materialise(network)
        parameters = live.now
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(live.note_gradient)
        image = torch.zeros(*input_shape)
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            loss = step(network, image)
        loss.backward()
    activations = live.peak - parameters - live.gradients_at_peak
    return StepMemory(parameters, optimiser_slots * live.gradients, live.gradients_at_peak, activations)


def sketch(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build` makes, of fake tensors; call it, and run the network, under `FakeTensorMode`.

    A network that reads a value while it is built, as many with stochastic depth do, is built for real first.
    """
    try:
        return build()
    except Exception:  # of torch, for what a fake tensor cannot do, in whatever the network makes of it
        with unset_fake_temporarily():
            network = build()
    _materialise(network)
    return network


def _materialise(network: nn.Module) -> None:
    """Give the parameters and buffers of a network storages of their own, shared ones once."""
    made: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if not isinstance(new, FakeTensor):
                        new.copy_(tensor.detach())
                    made[tensor] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
                table[name] = made[tensor]


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that exist at the same time, and how many of them are gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()

    def _count(self, storage: Any) -> None:
        # Views share a storage; its address is its name as long as it lives.
        name = storage._cdata
        if name in self._known:
            return
        size = storage.nbytes()
        self._known.add(name)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients
        weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size
