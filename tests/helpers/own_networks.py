"""Networks as a user writes them: one that is good and odd, others that are wrong in one way each."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark():
    """The module of benchmarks/networks.py, whose rehearsal is the test's too."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import networks
    finally:
        sys.path.remove(str(BENCHMARKS))
    return networks


def conv(axes: int):
    return nn.Conv3d if axes == 3 else nn.Conv2d


class OddNet(nn.Module):
    """Odd names in an odd order; in training a dictionary with a coarse head before the fine one."""

    def __init__(self, n_labels, *, width=4, n_in, ndim=3):
        super().__init__()
        self.down = conv(ndim)(n_in, width, 3, 2, 1)
        self.deep = conv(ndim)(width, width, 3, 2, 1)
        self.coarse = conv(ndim)(width, n_labels, 1)
        self.fine = conv(ndim)(width, n_labels, 1)

    def forward(self, image):
        x = F.relu(self.down(image))
        y = F.relu(self.deep(x))
        fine = F.interpolate(self.fine(x + F.interpolate(y, scale_factor=2)), scale_factor=2)
        return {"aux": self.coarse(y), "logits": fine} if self.training else fine


class Plain(nn.Module):
    """One convolution."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3):
        super().__init__()
        self.layer = conv(spatial_dims)(in_channels, out_channels, 1)

    def forward(self, x):
        return self.layer(x)


class Talks(Plain):
    """Prints when it is built and when it runs, as MONAI's DiNTS."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3):
        super().__init__(in_channels, out_channels, spatial_dims)
        print("built")

    def forward(self, x):
        print("ran")
        return super().forward(x)


class NeedsBackbone(Plain):
    def __init__(self, in_channels: int, out_channels: int, backbone: str):
        super().__init__(in_channels, out_channels)


class Returns16(Plain):
    """The same grid for every patch."""

    def forward(self, x):
        return F.adaptive_avg_pool3d(super().forward(x), 16)


class Takes32(Plain):
    """One size alone, which its constructor does not tell."""

    def forward(self, x):
        assert x.shape[2:] == (32, 32, 32), f"no {x.shape}"
        return super().forward(x)


class SevenChannels(Plain):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, 7)


class NoGradient(Plain):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class FailsInEval(Plain):
    def forward(self, x):
        if not self.training:
            raise RuntimeError("only for training")
        return super().forward(x)


class Probabilities(Plain):
    def forward(self, x):
        return super().forward(x).softmax(1)


class GrowsLayers(Plain):
    def forward(self, x):
        self.more = getattr(self, "more", None) or nn.Conv3d(1, 1, 1)
        return super().forward(x)


class Lazy(Plain):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels)
        self.layer = nn.LazyConv3d(out_channels, 1)


class Silent(Plain):
    """Multiples of 4 alone; other sizes give another grid without a word."""

    def forward(self, x):
        return F.interpolate(F.avg_pool3d(super().forward(x), 4), scale_factor=4)


class Stacked(Plain):
    """Three heads of full size, stacked in training; alone in evaluation."""

    def forward(self, x):
        y = super().forward(x)
        return torch.stack([y, y + 1, y + 2], 1) if self.training else y


class Cube(Plain):
    """Built for cubes of one edge, which is a number."""

    def __init__(self, in_channels: int, out_channels: int, image_size: int = 96):
        super().__init__(in_channels, out_channels)
        assert image_size % 8 == 0
        self.size = (image_size,) * 3

    def forward(self, x):
        assert x.shape[2:] == self.size
        return super().forward(x)


class Colours(nn.Module):
    """Three channels, of which the constructor says nothing; pretrained unless told otherwise."""

    def __init__(self, classes: int, pretrained: bool = True):
        super().__init__()
        assert not pretrained, "nothing may be fetched"
        self.layer = nn.Conv3d(3, classes, 1)

    def forward(self, x):
        return [self.layer(x), None]


class SinglePrecision(Plain):
    """Fails under autocast, as networks do that mix types by hand."""

    def forward(self, x):
        y = super().forward(x)
        if y.dtype != x.dtype:
            raise TypeError(f"{y.dtype} beside {x.dtype}")
        return y


def make_plain(in_channels: int, out_channels: int, note: str = "") -> Plain:
    """A function that makes a network; leaves a note, as one that does harm would."""
    if note:
        Path(note).write_text("called")
    return Plain(in_channels, out_channels)
