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

How it is computed here: the N x P map of spatial attention is never stored; it goes through PyTorch's fused
attention, or through `_SpatialAttention` where that has no dropout (CPU). The values of the channel branch are never
formed: its attention is a matrix over channels and multiplies the weights instead. Norm and temperature multiply the
projected keys, which are far fewer than the queries.
"""

from __future__ import annotations

import math
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
        batch, n, dim = x.shape
        w_query, w_key, w_value_channel, w_value_spatial = self.qkvv.weight.view(4, dim, dim)
        query, key, value = F.linear(x, torch.cat((w_query, w_key, w_value_spatial))).split(dim, dim=-1)  # (B, N, C)
        query_norm, key_norm = _norm(query), _norm(key)  # (B, 1, C)

        # Channel attention: A V = A W_v x, so the attention multiplies the weights.
        cosines = query.transpose(1, 2) @ key / (query_norm.transpose(1, 2) * key_norm)  # (B, C, C)
        attention = (self._per_head_blocks(cosines) * self.temperature).softmax(-1)  # (B, h, d, d)
        attention = F.dropout(attention, self.dropout, self.training)
        weight = (attention @ w_value_channel.view(self.num_heads, -1, dim)).view(batch, dim, dim)
        if self.fusion == "concat":
            weight = self.out_proj2.weight @ weight  # (B, C/2, C)
        x_channel = x @ weight.transpose(1, 2)

        # Spatial attention: softmax over P of q . k_proj.
        k_proj, v_proj = self._project(key, value)  # (B, P, C) each
        scale = self.temperature2.expand(-1, dim // self.num_heads, 1).reshape(1, 1, dim) / query_norm
        x_spatial = spatial_attention(
            query, k_proj * scale, v_proj, self.num_heads, self.dropout if self.training else 0.0
        )
        if self.scramble:
            x_spatial = x_spatial.view(batch, n, self.num_heads, -1).permute(0, 3, 2, 1).reshape(x.shape)

        if self.fusion == "sum":
            return x_channel + x_spatial
        return torch.cat((self.out_proj(x_spatial), x_channel + self.out_proj2.bias), dim=-1)

    def _project(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, C) from N tokens to P."""
        if self.projection == "matrix":
            return self.EF.T @ key, self.EF.T @ value
        return (self.E.weight @ key + self.E.bias[:, None], self.F.weight @ value + self.F.bias[:, None])

    def _per_head_blocks(self, x: Tensor) -> Tensor:
        """Diagonal blocks (B, h, d, d) of a matrix (B, C, C)."""
        heads = self.num_heads
        blocks = x.view(-1, heads, x.shape[1] // heads, heads, x.shape[2] // heads)
        return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm over the tokens, (B, N, C) -> (B, 1, C); zero has no direction, and no gradient."""
    return x.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()


def spatial_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float) -> Tensor:
    """softmax(q k^T) v per head, without a factor; query (B, N, C), key and value (B, P, C), result (B, N, C)."""
    if dropout > 0 and query.device.type == "cpu":
        return _SpatialAttention.apply(query, key, value, num_heads, dropout)
    q, k, v = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0).transpose(1, 2).reshape(query.shape)


class _SpatialAttention(torch.autograd.Function):
    """Attention with dropout on the CPU, a few thousand tokens at a time: the map is made again in backward.

    Only which weights are dropped is kept, one byte each. They are drawn with 16 random bits each, eight times faster
    than `bernoulli_`, so the probability is a multiple of 1 / 65536 (0.15 becomes 0.149994), as is the factor.
    """

    ROWS = 2048  # the map of one head and step stays in cache

    @staticmethod
    def _steps(query: Tensor, num_heads: int):
        size = query.shape[2] // num_heads
        for b in range(query.shape[0]):
            for head in range(num_heads):
                for start in range(0, query.shape[1], _SpatialAttention.ROWS):
                    rows = slice(start, start + _SpatialAttention.ROWS)
                    yield (b, rows, slice(head * size, (head + 1) * size)), (b, head, rows)

    @staticmethod
    def forward(ctx, query, key, value, num_heads, dropout):  # type: ignore[override]
        shape = (query.shape[0], num_heads, query.shape[1], key.shape[1])
        threshold = round(dropout * 65536)
        draws = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = (draws.view(torch.int16)[: math.prod(shape)] >= threshold - 32768).view(shape)
        ctx.factor = 65536 / (65536 - threshold)
        value = value * ctx.factor
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for at, at_map in _SpatialAttention._steps(query, num_heads):
            b, _, channels = at
            weights = (query[at] @ key[b, :, channels].T).softmax(-1)
            output[at] = weights.mul_(kept[at_map]) @ value[b, :, channels]
        ctx.save_for_backward(query, key, value, kept)
        return output

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, kept = ctx.saved_tensors
        grad_query = torch.empty_like(grad)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for at, at_map in _SpatialAttention._steps(query, kept.shape[1]):
            b, _, channels = at
            weights = (query[at] @ key[b, :, channels].T).softmax(-1)
            grad_weights = (grad[at] @ value[b, :, channels].T).mul_(kept[at_map])
            grad_logits = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_value[b, :, channels] += weights.mul_(kept[at_map]).T @ grad[at]
            grad_query[at] = grad_logits @ key[b, :, channels]
            grad_key[b, :, channels] += grad_logits.T @ query[at]
        return grad_query, grad_key, grad_value * ctx.factor, None, None


def without_attention_maps(network: nn.Module) -> None:
    """Let a CPU keep no map of attention in training: GPUs compute it with dropout in one kernel, CPUs only without."""
    for module in network.modules():
        if isinstance(module, EPA):
            module.dropout = 0.0
