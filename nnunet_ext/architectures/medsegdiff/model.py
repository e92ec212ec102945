"""MedSegDiff-V2, the whole: what the image says once, and what every step of the diffusion says again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.medsegdiff.condition import (
    ConditionModel,
    SpatialAttention,
    UncertainSpatialAttention,
    anchor,
)
from nnunet_ext.architectures.medsegdiff.denoiser import Denoiser, TimeEmbedding
from nnunet_ext.architectures.medsegdiff.ss_former import SSFormer

# The paper's ablations (its Table 4).
ANCHORS = ("none", "spatial", "u-sa")
SEMANTICS = ("none", "ss-former", "ss-former+nbp")
# Time steps whose filters are kept between windows.
MOST_KEPT = 128


@dataclass(frozen=True)
class Condition:
    """All that depends on the image alone. Batch 1 serves any number of samples.

    Attributes:
        logits: segmentation of the condition model, (batch, num_classes, *grid).
        image: the image as the diffusion model's first convolution sees it, (batch, width, *grid), or None.
        attention: anchor condition, (batch, 1, *grid), or None.
        tokens: semantic condition, (batch, m, dim), or None.
    """

    logits: Tensor
    image: Tensor | None
    attention: Tensor | None
    tokens: Tensor | None


class MedSegDiffV2(nn.Module):
    """Condition model, diffusion model, and the paper's two conditions between them.

    The paper shows the image to the diffusion model through the two conditions only. An anchor of one channel carries
    little of a segmentation of many classes, and the authors' released code concatenates the image to the noisy mask;
    so does this, unless `show_image` is False. Neither condition is detached: the loss of the diffusion
    reaches the condition model, as the paper's sum of losses has it and the released code has not.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the mask.
        strides: per stage and axis, the first of them 1; their length sets 2D or 3D.
        kernel_sizes: per stage and axis.
        width, max_width: channels of the condition model's first stage, doubled per stage up to `max_width`.
        denoiser_width: the same of the diffusion model, whose maximum is `max_width` by the ratio of the two widths.
        embedding_dim: channels of the time embedding.
        anchor: one of `ANCHORS`.
        semantic: one of `SEMANTICS`.
        semantic_patch: voxels of the deepest grid per patch and axis of the SS-Former.
        semantic_dim, semantic_blocks: d and N of the SS-Former.
        filter_channels, filter_kernel_size: of the NBP-Filters.
        show_image: whether the diffusion model sees the image.

    Raises:
        ValueError: sizes that do not fit together, an unknown ablation.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        width: int = 32,
        max_width: int = 320,
        denoiser_width: int = 16,
        embedding_dim: int = 128,
        anchor: str = "u-sa",
        semantic: str = "ss-former+nbp",
        semantic_patch: Sequence[int] | None = None,
        semantic_dim: int = 320,
        semantic_blocks: int = 4,
        filter_channels: int = 32,
        filter_kernel_size: int = 3,
        show_image: bool = True,
    ):
        super().__init__()
        axes = len(strides[0])
        if axes not in (2, 3) or len(kernel_sizes) != len(strides) or any(s != 1 for s in strides[0]):
            raise ValueError(
                f"strides and kernel_sizes must have one pair or triple per stage, strides beginning with ones, not "
                f"{strides!r} and {kernel_sizes!r}"
            )
        for name, value, choices in (("anchor", anchor, ANCHORS), ("semantic", semantic, SEMANTICS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        self.input_channels, self.num_classes = input_channels, num_classes
        self.reduction = total_stride(strides)
        features = stage_widths(width, max_width, len(strides))
        denoiser_features = stage_widths(denoiser_width, max_width * denoiser_width // width, len(strides))
        self.condition_model = ConditionModel(input_channels, num_classes, features, strides, kernel_sizes)
        self.time_embedding = TimeEmbedding(embedding_dim)
        self.denoiser = Denoiser(
            input_channels if show_image else 0, num_classes, denoiser_features, strides, kernel_sizes, embedding_dim
        )
        self._kept: dict[tuple[int, ...], list[Tensor | None]] = {}
        self._kept_state: tuple = ()
        attention = {"none": None, "spatial": SpatialAttention, "u-sa": UncertainSpatialAttention}[anchor]
        self.anchor = None if attention is None else attention(features[0], axes)
        self.ss_former = (
            None
            if semantic == "none"
            else SSFormer(
                features[-1],
                denoiser_features[-1],
                embedding_dim,
                semantic_patch or (1,) * axes,
                dim=semantic_dim,
                blocks=semantic_blocks,
                band_pass=semantic == "ss-former+nbp",
                filter_channels=filter_channels,
                filter_kernel_size=filter_kernel_size,
            )
        )

    def condition(self, image: Tensor) -> Condition:
        """What the image says: (batch, input_channels, *grid), the grid a multiple of `reduction`."""
        logits, feature, embedding = self.condition_model(image)
        stem = self.denoiser.stem_image
        return Condition(
            logits,
            None if stem is None else stem(image),
            None if self.anchor is None else self.anchor(feature),
            None if self.ss_former is None else self.ss_former.tokens(embedding),
        )

    def denoise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """One evaluation of the diffusion model.

        Args:
            x_t: noisy mask (batch, num_classes, *grid).
            t: time steps (batch,), or (1,) when all samples are at the same.
            condition: of `condition`, for each sample or for all.

        Returns:
            (batch, num_classes, *grid): noise, mask or velocity, whatever it was trained for.
        """
        embedding = self.time_embedding(t)

        def with_anchor(feature: Tensor) -> Tensor:
            return feature if condition.attention is None else anchor(condition.attention, feature)

        def with_semantics(e: Tensor) -> Tensor:
            if self.ss_former is None or condition.tokens is None:
                return e
            return self.ss_former(condition.tokens, e, self._filters(t, embedding, e.shape[2:]))

        return self.denoiser(x_t, embedding, condition.image, with_anchor, with_semantics)

    def _filters(self, t: Tensor, embedding: Tensor, grid: torch.Size) -> list[Tensor | None]:
        """The NBP-Filters of these time steps. Outside training they are kept, since every window visits the same."""
        assert self.ss_former is not None
        if torch.is_grad_enabled() or len(t) != 1:
            return self.ss_former.filters(embedding, grid)
        # Whatever changes a weight in place changes its version.
        weights = (*self.time_embedding.parameters(), *self.ss_former.parameters())
        half = torch.is_autocast_enabled(t.device.type)
        state = (half, *((id(w), w.data_ptr(), w._version) for w in weights))
        if state != self._kept_state or len(self._kept) > MOST_KEPT:
            self._kept_state, self._kept = state, {}
        key = (int(t), *grid)
        if key not in self._kept:
            self._kept[key] = self.ss_former.filters(embedding, grid)
        return self._kept[key]


def stage_widths(width: int, max_width: int, stages: int) -> list[int]:
    """Channels per stage: doubled from `width` up to `max_width`."""
    return [min(width * 2**s, max_width) for s in range(stages)]


def total_stride(strides: Sequence[Sequence[int]]) -> list[int]:
    """Voxels of the input per voxel of the deepest grid, per axis."""
    return [math.prod(per_axis) for per_axis in zip(*strides, strict=True)]
