"""SAM-Med3D (Wang et al., ECCV 2024 workshops, arXiv:2310.15161): a volume, clicks and a mask to a mask.

Built as the authors' code has it, because published weights come from the code; `attention.py` and
`prompt_encoder.py` say which of its habits weights depend on. Array axes are taken in their order: clicks are voxel
indices of the array, and the published weights saw arrays in (x, y, z) order of RAS+ images at 1.5 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.image_encoder import ImageEncoder
from nnunet_ext.architectures.sam_med3d.mask_decoder import MaskDecoder
from nnunet_ext.architectures.sam_med3d.prompt_encoder import PromptEncoder

# Official variant name -> sizes. The registry of the official code has three more, for which no weights exist.
VARIANTS: dict[str, dict[str, Any]] = {
    "vit_b_ori": {
        "img_size": 128,
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "out_channels": 384,
        "window_size": 14,
        "global_attention": (2, 5, 8, 11),
    },
}


class SAMMed3D(nn.Module):
    """Image encoder, prompt encoder and mask decoder; the defaults are the published network (100.5 M parameters).

    Args:
        in_channels: channels of the image.
        img_size: voxels per axis of the cube the network sees.
        patch_size: voxels per axis of a token; img_size / patch_size tokens per axis are the grid.
        embed_dim, depth, num_heads, mlp_ratio: of the image encoder.
        out_channels: channels of the image embedding, and width of the decoder; a multiple of 48.
        window_size: tokens per axis of attention windows; 0 for attention over all tokens in every block.
        global_attention: blocks whose attention is over all tokens.
        relative_positions: see `attention.WindowAttention`; published weights need `official`.
        grid_positions: see `prompt_encoder.PromptEncoder`; published weights need `official`.
        decoder_heads: heads of the decoder's attention.
        iou_hidden: width of the IoU head.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        img_size: int = 128,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_channels: int = 384,
        window_size: int = 14,
        global_attention: Sequence[int] = (2, 5, 8, 11),
        relative_positions: str = "official",
        grid_positions: str = "official",
        decoder_heads: int = 8,
        iou_hidden: int = 256,
    ):
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} must be a multiple of patch_size {patch_size}")
        if out_channels % 48:
            raise ValueError(f"out_channels {out_channels} must be a multiple of 48 (eight heads, three axes)")
        grid = img_size // patch_size
        self.img_size = img_size
        self.mask_size = 4 * grid
        self.image_encoder = ImageEncoder(
            in_channels, img_size, patch_size, embed_dim, depth, num_heads, mlp_ratio, out_channels, window_size,
            global_attention, relative_positions,
        )  # fmt: skip
        self.prompt_encoder = PromptEncoder(out_channels, grid, img_size, grid_positions=grid_positions)
        self.mask_decoder = MaskDecoder(out_channels, num_heads=decoder_heads, iou_hidden=iou_hidden)

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        mask: Tensor | None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits for prompts on an image embedding (batch or 1, out_channels, grid, grid, grid).

        Args:
            points, labels, mask: see `PromptEncoder`; the published training gives zeros for the first mask.
            multimask: see `MaskDecoder`.

        Returns:
            Logits (batch, 1 or 3, mask_size, mask_size, mask_size) and IoU estimates (batch, 1 or 3).
        """
        sparse, dense = self.prompt_encoder(points, labels, mask)
        position = self.prompt_encoder.dense_position()
        return self.mask_decoder(embedding, position, sparse, dense, multimask)

    def forward(self, x: Tensor, points: Tensor | None, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """Logits (batch, 1, img_size, img_size, img_size) for prompts on volumes (batch, in_channels, *cube)."""
        low_res, _ = self.decode(self.image_encoder(x), points, labels, mask)
        return F.interpolate(low_res.float(), (self.img_size,) * 3, mode="trilinear", align_corners=False)
