"""UniverSeg (Butoi, Gonzalez Ortiz, Ma, Sabuncu, Guttag & Dalca, ICCV 2023, arXiv:2304.06131): segmentation by example.

The task is not in the weights but in a support set of images with their labels: every block lets the features of the
image to segment (the target) meet those of each support entry in a convolution (CrossConv, equation 4) and averages.

Built as the authors' code has it, because the published weights come from it. Where the paper says otherwise: four
encoder and three decoder blocks instead of five and four, and no activation between CrossConv and the convolution that
follows it. That absence allows what makes this implementation faster; with it, everything below is linear up to the
LeakyReLU at the end of a block, so that, with convolution weights split into a target and a support part,

* `z_i = conv_t(target) + conv_s(support_i)`: the target is convolved once, not once per entry, nothing is concatenated;
* the next target needs `mean_i z_i` only, which is the CrossConv of the target and the mean of the support;
* the last block, which has no use for its support, takes the mean of the support before upsampling it;
* the first block's support has two channels only: its two convolutions are one of 5x5, corrected at the border.

All are exact; `universeg_plain.py` is the same network step by step. Without gradients, the entries pass in groups, so
that memory holds few of them at full resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Support entries at full resolution that are in memory at once, without gradients.
_GROUP = 8


class CrossConv2d(nn.Conv2d):
    """3x3 convolution of a target with support entries; input channels are those of the target, then the support's."""

    def __init__(self, target_channels: int, support_channels: int, out_channels: int):
        super().__init__(target_channels + support_channels, out_channels, 3, padding=1)
        self.target_channels = target_channels
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def target_part(self, target: Tensor) -> Tensor:
        return F.conv2d(target, self.weight[:, : self.target_channels], self.bias, padding=1)

    @property
    def support_weight(self) -> Tensor:
        return self.weight[:, self.target_channels :]


class CrossBlock(nn.Module):
    """CrossConv, then a convolution and LeakyReLU for each of the two streams (section 3.2, figure 3).

    Args:
        target_channels: of the input, as many for the support.
        support_channels: None if as many as the target's.
        cross_features: channels between CrossConv and convolution.
        conv_features: channels of both outputs.
        support_is_used: False in the last block, whose support convolution never reaches the output; it is kept for
            the official weights and frozen, which distributed training requires.
    """

    def __init__(
        self,
        target_channels: int,
        support_channels: int,
        cross_features: int,
        conv_features: int,
        support_is_used: bool = True,
    ):
        super().__init__()
        self.cross = nn.Module()
        self.cross.cross_conv = CrossConv2d(target_channels, support_channels, cross_features)
        self.target = _named_conv(cross_features, conv_features)
        self.support = _named_conv(cross_features, conv_features)
        self.support.requires_grad_(support_is_used)

    def from_target(self, target: Tensor) -> Tensor:
        """What all entries and their mean have in common: (B, C_t, H, W) -> (B, cross_features, H, W)."""
        return self.cross.cross_conv.target_part(target)  # type: ignore[union-attr, operator]

    def next_target(self, from_target: Tensor, mean_support: Tensor) -> Tensor:
        """With (B, C_s, H, W), the mean over the entries -> (B, conv_features, H, W)."""
        z = from_target + F.conv2d(mean_support, self.cross.cross_conv.support_weight, padding=1)  # type: ignore
        return F.leaky_relu_(self.target.vmapped.conv(z), 0.01)  # type: ignore[union-attr, operator]

    def next_support(self, from_target: Tensor, groups: Sequence[Tensor]) -> Iterator[Tensor]:
        """With groups of entries (B, S, C_s, H, W) -> one group (B, S, conv_features, H, W) at a time."""
        conv: nn.Conv2d = self.support.vmapped.conv  # type: ignore[union-attr, assignment]
        first, second = self.cross.cross_conv.support_weight, conv.weight  # type: ignore[union-attr]
        one_kernel = 25 * first.shape[1] * second.shape[0] < 9 * first.shape[0] * (first.shape[1] + second.shape[0])
        if one_kernel:
            from_target = conv(from_target)
            both = F.conv2d(first.transpose(0, 1), second.flip(2, 3), padding=2).transpose(0, 1)
        for group in groups:
            entries = group.flatten(0, 1)
            if one_kernel:
                features = _two_convolutions(entries, first, second, both).unflatten(0, group.shape[:2])
                features = features.add_(from_target[:, None])
            else:
                z = F.conv2d(entries, first, padding=1).unflatten(0, group.shape[:2]).add_(from_target[:, None])
                features = conv(z.flatten(0, 1)).unflatten(0, group.shape[:2])
            yield F.leaky_relu_(features, 0.01)


class UniverSeg(nn.Module):
    """UniverSeg; `UniverSeg()` is the published network (1,182,785 parameters).

    Args:
        encoder_blocks: channels per block, or pairs of channels (after CrossConv, after convolution).
        decoder_blocks: the same, from the deepest; None mirrors the encoder.

    Raises:
        ValueError: the numbers of blocks do not fit together.
    """

    def __init__(
        self,
        encoder_blocks: Sequence[int | Sequence[int]] = (64, 64, 64, 64),
        decoder_blocks: Sequence[int | Sequence[int]] | None = None,
    ):
        super().__init__()
        encoder = [_pair(block) for block in encoder_blocks]
        decoder = encoder[-2::-1] if decoder_blocks is None else [_pair(block) for block in decoder_blocks]
        if len(encoder) < 2 or len(decoder) != len(encoder) - 1:
            raise ValueError(
                f"UniverSeg needs at least two encoder blocks and one decoder block fewer, not {len(encoder)} and "
                f"{len(decoder)}"
            )
        self.multiple = 2 ** (len(encoder) - 1)
        self.enc_blocks, self.dec_blocks = nn.ModuleList(), nn.ModuleList()
        channels = 1
        for level, (cross, conv) in enumerate(encoder):
            self.enc_blocks.append(CrossBlock(channels, 2 if level == 0 else channels, cross, conv))
            channels = conv
        for (cross, conv), (_, skip) in zip(decoder, encoder[-2::-1], strict=True):
            used = len(self.dec_blocks) < len(decoder) - 1
            self.dec_blocks.append(CrossBlock(channels + skip, channels + skip, cross, conv, used))
            channels = conv
        self.out_conv = nn.Module()
        self.out_conv.conv = _conv(channels, 1, 1, "linear")

    def forward(self, target: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
        """Segment each image by its own support set.

        Args:
            target: (B, 1, H, W), intensities in [0, 1].
            support_images: (B, S, 1, H, W), in the same range.
            support_labels: (B, S, 1, H, W), 0 or 1, or a share of a pixel between.

        Returns:
            Logits (B, 1, H, W).

        Raises:
            ValueError: shapes that do not fit together, or H or W is no multiple of `multiple`.
        """
        self._check(target, support_images, support_labels)
        batch, entries = support_images.shape[:2]
        size = entries if torch.is_grad_enabled() else max(1, _GROUP // batch)
        support = list(torch.cat((support_images, support_labels), dim=2).split(size, dim=1))

        skips: list[tuple[Tensor, list[Tensor]]] = []
        first_mean = target.new_zeros(())
        last = len(self.enc_blocks) - 1
        for level, block in enumerate(self.enc_blocks):
            kept, pooled = [], []
            shared = block.from_target(target)  # type: ignore[operator]
            for features in block.next_support(shared, support):  # type: ignore[operator]
                if level == 0:  # only the mean is needed again, by the last block
                    first_mean = first_mean + features.sum(dim=1) / entries
                else:
                    kept.append(features)
                if level < last:
                    pooled.append(F.max_pool2d(features.flatten(0, 1), 2).unflatten(0, features.shape[:2]))
            target = block.next_target(shared, _mean(support, entries))  # type: ignore[operator]
            skips.append((target, kept))
            if level < last:
                target, support = F.max_pool2d(target, 2), pooled
        support = skips.pop()[1]

        for block in self.dec_blocks[:-1]:  # type: ignore[union-attr]
            skip, kept = skips.pop()
            support = [_join(deep, shallow) for deep, shallow in zip(support, kept, strict=True)]
            shared = block.from_target(torch.cat((_up(target), skip), dim=1))  # type: ignore[operator]
            target = block.next_target(shared, _mean(support, entries))  # type: ignore[operator]
            support = list(block.next_support(shared, support))  # type: ignore[operator]
        last_block: CrossBlock = self.dec_blocks[-1]  # type: ignore[assignment]
        shared = last_block.from_target(torch.cat((_up(target), skips.pop()[0]), dim=1))
        mean = torch.cat((_up(_mean(support, entries)), first_mean), dim=1)
        return self.out_conv.conv(last_block.next_target(shared, mean))  # type: ignore[operator, union-attr]

    def _check(self, target: Tensor, support_images: Tensor, support_labels: Tensor) -> None:
        grid = tuple(target.shape[-2:])
        expected = (target.shape[0], support_images.shape[1] if support_images.dim() == 5 else "S", 1, *grid)
        if target.dim() != 4 or target.shape[1] != 1:
            raise ValueError(f"UniverSeg expects a target (B, 1, H, W), not {tuple(target.shape)}")
        for name, tensor in (("support_images", support_images), ("support_labels", support_labels)):
            if tuple(tensor.shape) != expected or not tensor.shape[1]:
                raise ValueError(
                    f"{name} must be {expected} with at least one entry for this target, not {tuple(tensor.shape)}"
                )
        if any(size % self.multiple for size in grid):
            raise ValueError(f"UniverSeg with these blocks needs H and W divisible by {self.multiple}, not {grid}")


def _two_convolutions(x: Tensor, first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """conv(conv(x, first), second), both 3x3 and padded with zeros, by their product `both` of 5x5.

    The product does not know that the padding between the two is zero, so the outermost pixels are computed in two
    steps: they depend on three rows or columns.
    """
    y = F.conv2d(x, both, padding=2)

    def two_steps(strip: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(strip, first, padding=1), second, padding=1)

    y[:, :, :1] = two_steps(x[:, :, :3])[:, :, :1]
    y[:, :, -1:] = two_steps(x[:, :, -3:])[:, :, -1:]
    y[:, :, :, :1] = two_steps(x[:, :, :, :3])[:, :, :, :1]
    y[:, :, :, -1:] = two_steps(x[:, :, :, -3:])[:, :, :, -1:]
    return y


def _pair(block: int | Sequence[int]) -> tuple[int, int]:
    cross, conv = (block, block) if isinstance(block, int) else block
    return int(cross), int(conv)


def _conv(in_channels: int, out_channels: int, kernel_size: int, nonlinearity: str) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.kaiming_normal_(conv.weight, a=0.01 if nonlinearity == "leaky_relu" else 0, nonlinearity=nonlinearity)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _named_conv(in_channels: int, out_channels: int) -> nn.Module:
    """A convolution under the official name `vmapped.conv`."""
    named = nn.Module()
    named.vmapped = nn.Module()
    named.vmapped.conv = _conv(in_channels, out_channels, 3, "leaky_relu")
    return named


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def _join(deep: Tensor, shallow: Tensor) -> Tensor:
    """(B, S, C, H/2, W/2) and (B, S, C', H, W) -> (B, S, C + C', H, W)."""
    return torch.cat((_up(deep.flatten(0, 1)).unflatten(0, deep.shape[:2]), shallow), dim=2)


def _mean(groups: Sequence[Tensor], entries: int) -> Tensor:
    """Mean over the entries of all groups."""
    total = groups[0].sum(dim=1)
    for group in groups[1:]:
        total = total + group.sum(dim=1)
    return total / entries
