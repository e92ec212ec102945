"""The two-way transformer of SAM: tokens look at the image, the image looks back at the tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.image_encoder import MLPBlock


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its input's."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1):
        super().__init__()
        inner = dim // downsample
        if inner % num_heads:
            raise ValueError(f"attention of width {inner} needs a multiple of {num_heads} heads; change out_channels")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (batch, n, dim), keys and values (batch, m, dim); returns (batch, n, dim)."""
        projections = ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project, x in projections)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample=2)
        self.first = first

    def forward(self, tokens: Tensor, image: Tensor, tokens_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:  # without positions, and replacing its input
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + tokens_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + tokens_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + image_pe, tokens + tokens_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Blocks of both directions and a last look at the image."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, n, dim), image and its positions (batch, m, dim); returns both after attention."""
        queries = tokens
        for layer in self.layers:
            queries, image = layer(queries, image, tokens, image_pe)
        queries = queries + self.final_attn_token_to_image(queries + tokens, image + image_pe, image)
        return self.norm_final_attn(queries), image
