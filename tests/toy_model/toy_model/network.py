"""Two convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ToyNet(nn.Module):
    """Args: channels of the image, output channels, deep supervision (there is none), axes of the image, width."""

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool = False, *, axes: int, width: int = 8
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.layers = nn.Sequential(
            convolution(input_channels, width, 3, padding=1), nn.ReLU(), convolution(width, num_classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def from_patch(patch_size: list[int], strides: list[list[int]]) -> dict[str, Any]:
    """What follows from a configuration."""
    return {"axes": len(patch_size)}
