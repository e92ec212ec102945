"""A segmentation network that is shown interactions, and computes nothing outside of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunet_ext.architectures.interactive.geometry import RESIDUAL_ENCODER, residual_encoder
from nnunet_ext.errors import TrainingError
from nnunet_ext.prompts.channels import CHANNELS

OUTPUTS = 2  # background, object
# Voxels on the deepest grid, per axis: nnU-Net's. One alone has no variance.
LEAST_EDGE = 4
# The logits (background, object) of what lies outside of the image.
_OUTSIDE = (10.0, -10.0)
_LAYER_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin")


class InteractiveNetwork(nn.Module):
    """Image and interactions in, background and object out: always two outputs, whatever the data set's labels.

    A patch that reaches beyond the image is zero there in all channels. Where the network takes other sizes than the
    patch, that part is neither computed nor counted by its norms; it is background.

    Args:
        input_channels: of the image; those of interactions come on top.
        num_classes: of the data set, which mean nothing here.
        deep_supervision: return a list of logits, finest first, in training.
        strides: of the residual encoder, per stage and axis; any network's sizes are multiples of their product.
        features, blocks: of the residual encoder, see `residual_encoder`.
        network: dotted path of another network, built with the channels and `arguments`.
        arguments: of it, by name.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int = OUTPUTS,
        deep_supervision: bool = False,
        *,
        strides: Sequence[Sequence[int]] | None = None,
        features: int = 32,
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
        network: str = RESIDUAL_ENCODER,
        arguments: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.image_channels = input_channels
        if arguments is None:
            if strides is None:
                raise ValueError("strides are missing: per stage and axis, such as [[1, 1, 1], [2, 2, 2]]")
            arguments = residual_encoder(strides, features, blocks)
        classes = [name for name in _LAYER_CLASSES if isinstance(arguments.get(name), str)]
        self.backbone = get_network_from_plans(
            network, dict(arguments), classes, input_channels + CHANNELS, OUTPUTS, deep_supervision=deep_supervision
        )
        self.multiples: tuple[int, ...] | None = None
        # A network built for one grid is shown all of it.
        if "strides" in arguments and "patch_size" not in arguments:
            self.multiples = tuple(math.prod(axis) for axis in zip(*arguments["strides"], strict=True))
        # Sessions of viewers never say so, and trainers say when they train.
        self.eval()

    @property
    def deep_supervision(self) -> bool:
        return any(part.deep_supervision for part in self._supervised)

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        for part in self._supervised:
            part.deep_supervision = enabled

    @property
    def _supervised(self) -> list[Any]:
        """Whoever decides about deep supervision: in nnU-Net's networks the decoder."""
        parts = (self.backbone, getattr(self.backbone, "decoder", None))
        return [part for part in parts if hasattr(part, "deep_supervision")]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment one object per sample.

        Args:
            x: (batch, image channels + 7, *patch).

        Returns:
            Logits (batch, 2, *patch); in training with deep supervision a list, finest first. In training the whole
            patch is computed.

        Raises:
            TrainingError: an image without interaction channels.
        """
        if x.shape[1] == self.image_channels:
            raise TrainingError(
                "this model segments what somebody clicks on and was given an image alone; open its folder in a viewer "
                "with nninteractive-server --model-dir FOLDER, see docs/interactive.md"
            )
        if self.training or self.multiples is None:
            return self.backbone(x)
        box = (slice(None), slice(None), *occupied(x, self.multiples))
        inside = self.backbone(x[box].contiguous())
        if inside.shape[2:] == x.shape[2:]:
            return inside
        outside = torch.tensor(_OUTSIDE, dtype=inside.dtype, device=x.device)
        logits = outside[None, :, None, None, None].repeat(len(x), 1, *x.shape[2:])
        logits[box] = inside
        return logits


def occupied(x: Tensor, multiples: Sequence[int]) -> tuple[slice, ...]:
    """The smallest box, of multiples of so many voxels per axis, at least four, outside of which all is zero.

    Args:
        x: (batch, channels, *patch); a patch that is no multiple itself is kept whole on that axis.
    """
    used = (x != 0).any(1).any(0)
    axes = range(used.dim())
    box = []
    for axis, (size, step) in enumerate(zip(used.shape, multiples, strict=True)):
        along = used.any(dim=tuple(a for a in axes if a != axis)).nonzero()
        first, last = (0, 0) if not len(along) else (int(along[0]), int(along[-1]) + 1)
        wanted = max(last - first + (first - last) % step, LEAST_EDGE * step)
        if size % step or wanted >= size:
            box.append(slice(0, size))
            continue
        first = min(first, size - wanted)
        box.append(slice(first, first + wanted))
    return tuple(box)
