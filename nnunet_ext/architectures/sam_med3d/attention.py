"""Self-attention over a cube of tokens with relative positions, as SAM-Med3D's code has it, without its padding.

The published encoder pads its 8x8x8 tokens with zeros to windows of 14x14x14 *after* the norm and does not mask them:
the 2232 padding tokens are attended like any other. Their keys and values are all alike (the bias of `qkv`); they
differ only by the position term, and the exponential of that term is a product over the axes. So

    sum over the padding of exp(q . k_bias scale + position(q, pad)) = exp(q . k_bias scale) * S(q),

where S(q) is a few small sums, and all the padding is one more key with the logarithm of S added to its logit. That is
exact, and 513 keys take the place of 2744. Queries of the padding are thrown away in the published code, here never
made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELATIVE_POSITIONS = ("official", "decomposed")


class WindowAttention(nn.Module):
    """Multi-head self-attention over the cubic start of a window.

    Args:
        dim: channels.
        num_heads: heads; `dim` must be divisible by it.
        window: tokens per axis of the window; those beyond the input are padding.
        relative_positions: `official` adds the position terms along the axes the published code adds them along
            (issue 101 of its repository), which published weights need; `decomposed` adds them along their own axes,
            as SAM does in 2D.
    """

    def __init__(self, dim: int, num_heads: int, window: int, relative_positions: str = "official"):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} must be divisible by num_heads {num_heads}")
        if relative_positions not in RELATIVE_POSITIONS:
            raise ValueError(
                f"relative_positions must be one of {', '.join(RELATIVE_POSITIONS)}, not {relative_positions!r}"
            )
        self.num_heads, self.window, self.relative_positions = num_heads, window, relative_positions
        size = (2 * window - 1, dim // num_heads)
        self.rel_pos_d = nn.Parameter(torch.zeros(size))
        self.rel_pos_h = nn.Parameter(torch.zeros(size))
        self.rel_pos_w = nn.Parameter(torch.zeros(size))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within (batch, g, g, g, dim), g up to the window; the rest of the window is padding after the norm."""
        batch, grid, dim = x.shape[0], x.shape[1], x.shape[-1]
        if x.shape[1:4] != (grid,) * 3 or grid > self.window:
            raise ValueError(f"expected a cube of at most {self.window} tokens per axis, not {tuple(x.shape[1:4])}")
        qkv = self.qkv(x).reshape(batch, grid**3, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)
        position = self._position(q, grid)
        if grid < self.window:
            _, k_bias, v_bias = (
                self.qkv.bias.to(q.dtype).reshape(3, 1, self.num_heads, 1, -1).expand(-1, batch, -1, -1, -1)
            )
            k, v = torch.cat([k, k_bias], 2), torch.cat([v, v_bias], 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=position.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def _position(self, q: Tensor, grid: int) -> Tensor:
        """What is added to the logits, (batch, heads, tokens, tokens or tokens + 1), in single precision or better."""
        with torch.autocast(q.device.type, enabled=False):
            along_w, along_d, along_h = self._terms(
                q.to(torch.promote_types(q.dtype, torch.float32)).unflatten(2, (grid,) * 3), grid
            )
            inner = slice(grid)
            real = along_w[..., inner] + along_d[..., inner, :, inner] + along_h[..., inner, inner]
            real = real.flatten(-3).flatten(2, 4)
            if grid == self.window:
                return real
            return torch.cat([real, self._log_padding(along_w, along_d, along_h, grid).flatten(2)[..., None]], -1)

    def _terms(self, q: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
        """Three terms whose sum is the position term of query (d, h, w) and key (d', h', w') of the whole window.

        Args:
            q: queries (batch, heads, g, g, g, head_dim), not scaled.

        Returns:
            Tensors that broadcast to (batch, heads, d, h, w, d', h', w'), the first free of d' and h', the second of
            h', the third of d'.
        """
        window = self.window
        steps = torch.arange(window, device=q.device)
        offset = steps[:, None] - steps[None] + window - 1  # of query minus key, from 0
        d, h, w = (table.to(q.dtype)[offset] for table in (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w))
        if self.relative_positions == "decomposed":
            along_w = torch.einsum("bndhwc,wkc->bndhwk", q, w[:grid])[..., None, None, :]
            along_d = torch.einsum("bndhwc,dkc->bndhwk", q, d[:grid])[..., :, None, None]
            along_h = torch.einsum("bndhwc,hkc->bndhwk", q, h[:grid])[..., None, :, None]
            return along_w, along_d, along_h
        # Every term runs along the key's w'; the other two take the *query* at w = d' or w = h' of the same row,
        # and beyond the input that query is padding.
        bias = self.qkv.bias[: self.qkv.in_features].to(q.dtype).reshape(1, self.num_heads, 1, 1, 1, -1)
        row = torch.cat([q, bias.expand(*q.shape[:4], window - grid, -1)], 4)
        along_w = torch.einsum("bndhwc,dkc->bndhwk", q, d[:grid])[..., None, None, :]
        along_d = torch.einsum("bndhwc,hkc->bndhwk", row, h[:grid])[:, :, :, :, None, :, None, :]
        along_h = torch.einsum("bndhwc,wkc->bndhwk", row, w)[:, :, :, :, None, None, :, :]
        return along_w, along_d, along_h

    @staticmethod
    def _log_padding(along_w: Tensor, along_d: Tensor, along_h: Tensor, grid: int) -> Tensor:
        """log S: the logarithm of the sum over all padding keys of exp(position), (batch, heads, d, h, w)."""
        # Without the summed axis: (..., w', or 1 where the term is free of it).
        d, h = along_d.squeeze(-2), along_h.squeeze(-3)
        d_in, d_out, d_all = (d[..., part, :].logsumexp(-2) for part in (slice(grid), slice(grid, None), slice(None)))
        h_out, h_all = (h[..., part, :].logsumexp(-2) for part in (slice(grid, None), slice(None)))
        # A key is padding if w' is beyond the input, or d' is, or h' is.
        at_inner_w = torch.logaddexp(d_out + h_all, d_in + h_out)
        at_outer_w = d_all + h_all
        w = along_w[..., 0, 0, :]
        over_w = [t.expand(*t.shape[:-1], w.shape[-1]) for t in (at_inner_w, at_outer_w)]
        padding = torch.cat([over_w[0][..., :grid], over_w[1][..., grid:]], -1)
        return (w + padding).logsumexp(-1)
