"""Efficient paired attention (EPA) of UNETR++ (Shaker et al., IEEE TMI 2024, arXiv:2212.04497, section 3.3).

Channel and spatial attention share queries and keys and have a value each. Spatial attention projects keys and
values from N tokens to P, so that its cost is linear in N.

As in the authors' code, which the published weights need:

* queries and keys are normalised over the tokens, not over the channels of a head, and the keys are projected before
  that;
* the spatial result (heads, tokens, channels per head) is laid out as (channels per head, heads, tokens) and then
  read as (tokens, channels), which scrambles both. `scramble=False` reads it in the right order.

The authors retrained Synapse without the scramble when it was reported (github.com/Amshaker/unetr_plus_plus, issue
62): mean Dice 87.1 instead of 87.2, within the noise of a training, so they left the code as it is.

How it is computed here: nothing but the spatial map ever has both axes of size N and P per head, and that one goes
through PyTorch's fused attention; norms and channel logits come from one Gram matrix; the values of the channel
branch are never formed, as its attention is a matrix over channels and multiplies the weights instead.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Projection = Literal["shared", "separate", "matrix"]
Fusion = Literal["concat", "sum"]


class EPA(nn.Module):
    """Paired channel and spatial attention over a fixed number of tokens.

    Args:
        num_tokens: N, tokens of the grid; the projections are N x P matrices.
        dim: C, channels, a multiple of `num_heads`.
        proj_size: P, tokens that keys and values are projected to.
        num_heads: heads of both attentions.
        projection: `shared`: keys and values use one affine map (registered as E and F); `separate`: one each;
            `matrix`: one matrix EF without bias.
        fusion: `concat` of two halves, each through its own linear layer, or the plain `sum`.
        dropout: of both attention maps.
        scramble: keep the token order of the official code; see the module's text.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        proj_size: int = 64,
        num_heads: int = 4,
        *,
        projection: Projection = "shared",
        fusion: Fusion = "concat",
        dropout: float = 0.1,
        scramble: bool = True,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"channels must be a multiple of the number of heads, not {dim} with {num_heads} heads")
        if projection not in ("shared", "separate", "matrix"):
            raise ValueError(f"projection must be shared, separate or matrix, not {projection!r}")
        if fusion not in ("concat", "sum"):
            raise ValueError(f"fusion must be concat or sum, not {fusion!r}")
        self.num_heads = num_heads
        self.projection = projection
        self.fusion = fusion
        self.dropout = dropout
        self.scramble = scramble
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))  # of channel attention
        self.temperature2 = nn.Parameter(torch.ones(num_heads, 1, 1))  # of spatial attention
        self.qkvv = nn.Linear(dim, 4 * dim, bias=False)  # query, key, value of channels, value of space
        if projection == "matrix":
            self.EF = nn.Parameter(torch.empty(num_tokens, proj_size).uniform_(-(proj_size**-0.5), proj_size**-0.5))
        else:
            self.E = nn.Linear(num_tokens, proj_size)
            # Registered twice when shared: state_dict then has both names, and F's values are the ones that count.
            self.F = self.E if projection == "shared" else nn.Linear(num_tokens, proj_size)
        if fusion == "concat":
            self.out_proj = nn.Linear(dim, dim // 2)  # spatial half
            self.out_proj2 = nn.Linear(dim, dim // 2)  # channel half

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, N, C); the arithmetic is that of the parameters, also under autocast.

        The spatial logits hold keys summed over all N tokens without normalisation: they leave the range of half
        precision.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._attend(x.to(self.qkvv.weight.dtype))

    def _attend(self, x: Tensor) -> Tensor:
        batch, _, dim = x.shape
        w_query, w_key, w_value_channel, w_value_spatial = self.qkvv.weight.view(4, dim, dim)
        qkv = F.linear(x, torch.cat((w_query, w_key, w_value_spatial)))  # (B, N, 3C)
        queries_keys, keys_values = qkv[..., : 2 * dim], qkv[..., dim:]
        # |q_c|^2, |k_c|^2 and q_c . k_c over the tokens, for all channels at once.
        gram = queries_keys.transpose(1, 2) @ queries_keys  # (B, 2C, 2C)
        norms = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()  # (B, 2C)
        query_norm, key_norm = norms[:, None, :dim], norms[:, None, dim:]  # (B, 1, C)
        cosines = gram[:, :dim, dim:] / (query_norm.transpose(1, 2) * key_norm)  # (B, C, C)

        # Channel attention: A V = A W_v x, so the attention multiplies the weights.
        attention = self._per_head_blocks(cosines) * self.temperature
        attention = F.dropout(attention.softmax(-1), self.dropout, self.training)  # (B, h, d, d)
        weight = (attention @ w_value_channel.view(self.num_heads, -1, dim)).view(batch, dim, dim)
        if self.fusion == "concat":
            weight = self.out_proj2.weight @ weight  # (B, C/2, C)
        x_channel = x @ weight.transpose(1, 2)

        # Spatial attention: softmax over P of q . k_proj. Norm and temperature are scalars per channel of the query
        # and go to the P projected keys, which are far fewer.
        k_proj, v_proj = self._project(keys_values)  # (B, P, C) each
        scale = self.temperature2.expand(-1, dim // self.num_heads, 1).reshape(1, 1, dim) / query_norm
        x_spatial = F.scaled_dot_product_attention(
            self._heads(qkv[..., :dim]),
            self._heads(k_proj * scale),
            self._heads(v_proj),
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,
        )  # (B, h, N, d)
        x_spatial = x_spatial.permute((0, 3, 1, 2) if self.scramble else (0, 2, 1, 3)).reshape(x.shape)

        if self.fusion == "sum":
            return x_channel + x_spatial
        return torch.cat((self.out_proj(x_spatial), x_channel + self.out_proj2.bias), dim=-1)

    def _project(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, 2C) from N tokens to P."""
        keys, values = keys_values.chunk(2, dim=-1)
        if self.projection == "separate":
            return (self.E.weight @ keys + self.E.bias[:, None], self.F.weight @ values + self.F.bias[:, None])
        if self.projection == "matrix":
            projected = self.EF.T @ keys_values
        else:
            projected = self.F.weight @ keys_values + self.F.bias[:, None]
        k_proj, v_proj = projected.chunk(2, dim=-1)
        return k_proj, v_proj

    def _heads(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, h, n, d), a view."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _per_head_blocks(self, x: Tensor) -> Tensor:
        """Diagonal blocks (B, h, d, d) of a matrix (B, C, C)."""
        heads = self.num_heads
        blocks = x.view(-1, heads, x.shape[1] // heads, heads, x.shape[2] // heads)
        return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
