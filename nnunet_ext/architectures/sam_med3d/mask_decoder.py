"""Image embedding and prompts to mask logits at four voxels per token and axis."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.image_encoder import LayerNorm3d
from nnunet_ext.architectures.sam_med3d.transformer import TwoWayTransformer


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int):
        super().__init__()
        widths = [dim, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class MaskDecoder(nn.Module):
    """One mask, or three, and an estimate of its IoU.

    The published training uses the one mask only: the other three and the IoU estimate were never trained, so do not
    show the estimate to anyone as a confidence.

    Args:
        dim: channels of all embeddings.
        depth, num_heads, mlp_dim: of the two-way transformer.
        num_multimask_outputs: masks beside the first.
        iou_hidden: width of the IoU head.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        num_multimask_outputs: int = 3,
        iou_hidden: int = 256,
    ):
        super().__init__()
        masks = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(depth, dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, 2, 2),
            LayerNorm3d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(masks))
        self.iou_prediction_head = MLP(dim, iou_hidden, masks, 3)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Decode a batch of prompts.

        Args:
            image: embeddings (batch or 1, dim, g, g, g); one is shared by all prompts.
            image_pe: (1, dim, g, g, g).
            sparse: (batch, n, dim).
            dense: (batch or 1, dim, g, g, g).
            multimask: return masks 1 to 3 instead of mask 0.

        Returns:
            Logits (batch, 1 or 3, 4 g, 4 g, 4 g) and IoU estimates (batch, 1 or 3).
        """
        batch, grid = len(sparse), image.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), sparse], 1)
        keys = (image + dense).flatten(2).transpose(1, 2).expand(batch, -1, -1)
        found, keys = self.transformer(keys, image_pe.flatten(2).transpose(1, 2), tokens)
        upscaled = self.output_upscaling(keys.transpose(1, 2).unflatten(2, grid))
        chosen = range(1, len(self.mask_tokens.weight)) if multimask else range(1)
        # Hypernetworks of masks nobody asked for are not run.
        weights = torch.stack([self.output_hypernetworks_mlps[i](found[:, 1 + i]) for i in chosen], 1)
        masks = torch.einsum("bmc,bcxyz->bmxyz", weights, upscaled)
        iou = self.iou_prediction_head(found[:, 0])
        return masks, iou[:, chosen.start : chosen.stop]
