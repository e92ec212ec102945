"""SAM-Med3D as the viewers' sessions run networks: image, mask so far and drawn interactions in, two logits out.

napari, MITK, 3D Slicer and OHIF-AI show their user's clicks to a network through an nnInteractive session, as channels
beside the image. Here they become the prompts SAM-Med3D knows: each ball of the point channels a click, and the
segmentation so far the mask prompt. It has no box, scribble or lasso prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.prompts.channels import CHANNELS, CHANNELS_OF, PREVIOUS
from nnunet_ext.prompts.peaks import as_tensor, points_of
from nnunet_ext.prompts.types import Points

# Channels of the interactions it has no prompt for.
WITHOUT_PROMPT = {"boxes or lassos": CHANNELS_OF["box"], "scribbles": CHANNELS_OF["scribble"]}


class SAMMed3DInViewers(PromptableSAMMed3D):
    """A trained `PromptableSAMMed3D` behind interaction channels; the same weights by the same names.

    Args:
        input_channels: of the image, without interactions.
        axes: the viewer's axes in the order the network knows them, as the `transpose_forward` of plans.
        arguments: of `PromptableSAMMed3D`.
    """

    def __init__(self, input_channels: int, *, axes: Sequence[int] = (0, 1, 2), **arguments: Any):
        # Sessions load weights strictly and know nothing of the classes of the training.
        super().__init__(input_channels, 2, **arguments)
        self._there = (0, 1, *(axis + 2 for axis in axes))
        self._back = (0, 1, *(list(axes).index(axis) + 2 for axis in range(3)))
        self.register_load_state_dict_pre_hook(_take_classes)
        self.eval()  # nobody else does

    def forward(self, x: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        """Logits (batch, 2, *patch) of background and object.

        Args:
            x: (batch, input_channels + 7, *patch): image, segmentation so far, and positive and negative boxes or
                lassos, points, scribbles.

        Raises:
            ValueError: another number of channels, or an interaction that SAM-Med3D has no prompt for.
        """
        expected = self.input_channels + CHANNELS
        if x.shape[1] != expected:
            raise ValueError(f"SAM-Med3D in a viewer takes {expected} channels (image and prompts), not {x.shape[1]}")
        x = x.permute(self._there)
        image, drawn = x[:, : self.input_channels], x[:, self.input_channels :].float()
        for kind, channels in WITHOUT_PROMPT.items():
            if drawn[:, list(channels)].any():
                raise ValueError(f"SAM-Med3D has no prompt for {kind}; give points, or a mask to start from")
        embedding, patch = self.embed(image), x.shape[2:]
        inside = torch.cat([self._inside(embedding[i : i + 1], sample, patch) for i, sample in enumerate(drawn)])
        inside = inside.permute(self._back)
        # What is above 0 is the object, as everywhere else.
        return torch.cat([torch.zeros_like(inside), inside], 1)

    def _inside(self, embedding: Tensor, drawn: Tensor, patch: torch.Size) -> Tensor:
        """Logits (1, 1, *patch) of the object for the interactions (7, *patch) of one sample."""
        mask = drawn[None, PREVIOUS : PREVIOUS + 1]
        low_res = self.mask_prompt(mask) if mask.any() else self.no_mask(1, mask.device)
        positive, negative = CHANNELS_OF["point"]
        clicks = [(index, 1) for index in points_of(drawn[positive])]
        clicks += [(index, 0) for index in points_of(drawn[negative])]
        labels = torch.tensor([[label for _, label in clicks]], dtype=torch.int64, device=mask.device)
        points = Points(as_tensor([index for index, _ in clicks], mask.device), labels)
        return self.upscale(self.segment(embedding, points, low_res, patch), patch)


def _take_classes(module: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
    """As many tokens of the automatic segmentation, which is not used here, as the training had classes."""
    tokens = weights.get(f"{prefix}automatic.seg_layers.weight")
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        own = module.automatic.seg_layers  # type: ignore[union-attr]
        module.automatic.seg_layers = nn.Embedding(*tokens.shape, device=own.weight.device)  # type: ignore[union-attr]
