"""The tri-orientated Mamba layer of SegMamba (Xing et al., arXiv:2401.13560, section 2.2, "ToM").

A volume is read as a sequence in three orders, each with its own filter and scan: forward (first axis slowest),
the same in reverse, and inter-slice (first axis fastest). Their sum sees every voxel from three sides.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.ops.causal_conv1d import causal_conv1d
from nnunet_ext.ops.causal_conv1d import choose_backend as convolution_backend
from nnunet_ext.ops.selective_scan import choose_backend as scan_backend
from nnunet_ext.ops.selective_scan import selective_scan

# The suffixes of the published parameter names, and the orders of `nnunet_ext.ops.order` they stand for.
DIRECTIONS = {"": "forward", "_b": "reverse", "_s": "slices"}


class TriOrientedMamba(nn.Module):
    """Selective scans in three orders over shared projections; sequence in, sequence out.

    Args:
        d_model: channels of the sequence.
        d_state: states per channel (N).
        d_conv: width of the causal convolution.
        expand: inner channels per outer channel.

    All arithmetic is float32, also under autocast: half precision in Mamba layers is the widely reported cause of
    NaN losses, and these layers hold under five per cent of SegMamba's parameters.
    """

    def __init__(self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2):
        super().__init__()
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for direction in DIRECTIONS:
            self._add_direction(direction, d_conv)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _add_direction(self, direction: str, d_conv: int) -> None:
        conv = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.add_module(f"conv1d{direction}", conv)
        self.add_module(f"x_proj{direction}", x_proj)
        self.add_module(f"dt_proj{direction}", dt_proj)
        # Mamba's initialisation: step sizes log-uniform in [0.001, 0.1] (through the inverse of softplus), decay
        # rates 1..N in every channel (S4D-real).
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        step = torch.exp(torch.empty(self.d_inner).uniform_(math.log(0.001), math.log(0.1))).clamp(min=1e-4)
        with torch.no_grad():
            dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        decay = torch.arange(1, self.d_state + 1, dtype=torch.float32).repeat(self.d_inner, 1)
        self.register_parameter(f"A{direction}_log", nn.Parameter(torch.log(decay)))
        self.register_parameter(f"D{direction}", nn.Parameter(torch.ones(self.d_inner)))

    def backends(self, device: torch.device) -> dict[str, str]:
        """What computes the scan and the convolution on a device, in the layer's single precision."""
        width = self.conv1d.kernel_size[0]
        return {"scan": scan_backend(device), "convolution": convolution_backend(device, width=width)}

    def forward(self, tokens: Tensor, num_slices: int) -> Tensor:
        """Mix a sequence.

        Args:
            tokens: (batch, length, d_model).
            num_slices: how many equal parts the inter-slice order interleaves; divides the length.

        Returns:
            (batch, length, d_model), float32.

        Raises:
            ValueError: `num_slices` does not divide the length.
        """
        length = tokens.shape[1]
        if length % num_slices:
            raise ValueError(f"num_slices={num_slices} does not divide the {length} tokens of this stage")
        with torch.autocast(tokens.device.type, enabled=False):
            xz = self.in_proj.weight @ tokens.float().transpose(1, 2)  # (batch, 2 d_inner, length)
            x, z = xz.chunk(2, dim=1)
            y = sum(self._scan(x, suffix, orientation, num_slices) for suffix, orientation in DIRECTIONS.items())
            # The published code gates every order by the same z before the sum.
            return self.out_proj((y * F.silu(z)).transpose(1, 2))

    def _scan(self, x: Tensor, suffix: str, orientation: str, num_slices: int) -> Tensor:
        """Convolution, input-dependent parameters and scan in one order: (batch, d_inner, length) in memory order."""
        conv, x_proj, dt_proj = (self.get_submodule(f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        A_log, D = self.get_parameter(f"A{suffix}_log"), self.get_parameter(f"D{suffix}")
        order: dict[str, Any] = {"orientation": orientation, "num_slices": num_slices}
        x = causal_conv1d(x, conv.weight[:, 0], conv.bias, silu=True, **order)
        # The projections mix channels only, so they need no order.
        dt, B, C = (x_proj.weight @ x).split((self.dt_rank, self.d_state, self.d_state), dim=1)
        delta = dt_proj.weight @ dt
        A = -torch.exp(A_log.float())
        out = selective_scan(x, delta, A, B, C, D, delta_bias=dt_proj.bias, delta_softplus=True, **order)
        assert isinstance(out, Tensor)
        return out


class MambaLayer(nn.Module):
    """LayerNorm over channels, tri-orientated Mamba, residual: (batch, channels, *grid) in and out."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = TriOrientedMamba(channels)

    def forward(self, x: Tensor, num_slices: int) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))  # (batch, length, channels)
        mixed = self.mamba(tokens, num_slices)
        return x + mixed.transpose(1, 2).reshape(x.shape).to(x.dtype)
