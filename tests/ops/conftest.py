"""Memory that a kernel is given to write holds NaN until it does, so that an entry it forgets is seen.

Elsewhere such memory often holds zeros, or the right values of the test before.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nnunet_ext.ops.causal_conv1d import cpu as convolution_cpu
from nnunet_ext.ops.selective_scan import cpu as scan_cpu

# What asks for memory without setting it: torch's functions, and `nnunet_ext.ops.compiled.empty` where it is used.
ASKED_OF = [
    (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"),
    (convolution_cpu, "empty"), (scan_cpu, "empty"),
]  # fmt: skip


def filled(empty: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty_and_filled(*arguments, **options) -> torch.Tensor:
        made = empty(*arguments, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    return empty_and_filled


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    for owner, name in ASKED_OF:
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
