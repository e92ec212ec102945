"""The tri-orientated Mamba layer of SegMamba (Xing et al., arXiv:2401.13560, section 2.2, "ToM").

A volume is read as a sequence in three orders, each with its own filter and scan: forward (first axis slowest),
the same in reverse, and inter-slice (first axis fastest). Their sum sees every voxel from three sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nnunet_ext.ops.causal_conv1d import causal_conv1d
from nnunet_ext.ops.selective_scan import selective_scan

DIRECTIONS = ("", "_b", "_s")  # forward, reverse, inter-slice: the suffixes of the published parameter names


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
            xz = (self.in_proj.weight @ tokens.float().transpose(1, 2)).float()  # (batch, 2 d_inner, length)
            y = self._scan(xz, "")
            y = y + self._scan(xz.flip(-1), "_b").flip(-1)
            y = y + across_slices(self._scan(across_slices(xz, num_slices), "_s"), length // num_slices)
            return self.out_proj(y.transpose(1, 2))

    def _scan(self, xz: Tensor, direction: str) -> Tensor:
        """Convolution, input-dependent parameters, scan and gate of one order: (batch, d_inner, length)."""
        conv, x_proj, dt_proj = (self.get_submodule(f"{name}{direction}") for name in ("conv1d", "x_proj", "dt_proj"))
        A_log, D = self.get_parameter(f"A{direction}_log"), self.get_parameter(f"D{direction}")
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d(x, conv.weight[:, 0], conv.bias, silu=True)
        dt, B, C = (x_proj.weight @ x).split((self.dt_rank, self.d_state, self.d_state), dim=1)
        out = selective_scan(
            x, dt_proj.weight @ dt, -torch.exp(A_log.float()), B, C, D, z, dt_proj.bias, delta_softplus=True
        )
        assert isinstance(out, Tensor)
        return out


def across_slices(x: Tensor, num_slices: int) -> Tensor:
    """Read (…, num_slices * per_slice) slice index fastest: the inter-slice order.

    Its inverse is itself with `per_slice` in place of `num_slices`.
    """
    return x.unflatten(-1, (num_slices, -1)).transpose(-1, -2).flatten(-2)


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
