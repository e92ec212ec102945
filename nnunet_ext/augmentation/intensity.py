"""batchgeneratorsv2's transforms of intensities, in place and without copies of the image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import _build_kernel
from torch import Tensor
from torch.nn.functional import interpolate

from nnunet_ext.augmentation.kernels import once
from nnunet_ext.augmentation.randomness import Random, is_drawable
from nnunet_ext.augmentation.transform import Sample, Transform
from nnunet_ext.ops.compiled import array, compile_kernel

# batchgeneratorsv2's smallest divisor.
_SMALLEST = 1e-7
_NOTHING: np.ndarray = np.ones(1, np.float32)


def owned(sample: Sample) -> Tensor:
    """The sample's image, contiguous in float32, as the kernels need it."""
    sample["image"] = sample["image"].to(torch.float32).contiguous()
    return sample["image"]


def chosen(channels: int, probability: float, random: Random) -> Tensor:
    """Numbers of the channels that draw less than a probability."""
    return torch.where(random.rand(channels) < probability)[0]


class Noise(Transform):
    """GaussianNoiseTransform; the noise is torch's, number by number."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.noise_variance) else "a variance drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        r = self.reference
        channels = chosen(shape[0], r.p_per_channel, random)
        if not len(channels):
            return {"channels": channels, "noise": None}
        noise = torch.empty((len(channels), *shape[1:]))
        if r.synchronize_channels:
            noise.normal_(0, random.scalar(r.noise_variance), generator=random.torch)
        else:
            sigmas = torch.tensor([random.scalar(r.noise_variance) for _ in channels], dtype=torch.float32)
            noise.normal_(generator=random.torch).mul_(sigmas.view(-1, *[1] * (len(shape) - 1)))
        return {"channels": channels, "noise": noise}

    def apply(self, sample: Sample, channels: Tensor, noise: Tensor | None, **_: Any) -> Sample:  # type: ignore[override]
        if noise is not None:
            for channel, values in zip(channels.tolist(), noise, strict=True):
                sample["image"][channel] += values
        return sample


class Blur(Transform):
    """GaussianBlurTransform: one pass per axis, in place."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.blur_sigma) else "a sigma drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        r = self.reference
        dim = len(shape) - 1
        applies = random.rand(shape[0]) < r.p_per_channel

        def of_axes() -> list[float]:
            return (
                [random.scalar(r.blur_sigma)] * dim
                if r.synchronize_axes
                else [random.scalar(r.blur_sigma) for _ in range(dim)]
            )

        sigmas = of_axes() if r.synchronize_channels else [of_axes() for _ in range(int(applies.sum()))]
        return {"apply_to_channel": applies, "sigmas": sigmas}

    def apply(self, sample: Sample, apply_to_channel: Tensor, sigmas: list, **_: Any) -> Sample:  # type: ignore[override]
        image = owned(sample)
        channels = torch.where(apply_to_channel)[0].tolist()
        for number, channel in enumerate(channels):
            of_axes = sigmas if self.reference.synchronize_channels else sigmas[number]
            kernels = [_build_kernel(sigma, truncate=6).numpy() for sigma in of_axes]
            for kernel, size in zip(kernels, image.shape[1:], strict=True):
                if len(kernel) // 2 >= size:
                    raise ValueError(f"blurring reflects {len(kernel) // 2} voxels and the patch has {size}")
            kernels = [_NOTHING] * (3 - len(kernels)) + kernels
            _kernel("blur")(_volume(image[channel]), *kernels)
        return sample


class Brightness(Transform):
    """MultiplicativeBrightnessTransform."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.multiplier_range) else "a multiplier drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        channels = chosen(shape[0], self.reference.p_per_channel, random)
        factors = _per_channel(
            self.reference.multiplier_range, len(channels), self.reference.synchronize_channels, random
        )
        return {"apply_to_channel": channels, "multipliers": factors}

    def apply(self, sample: Sample, apply_to_channel: Tensor, multipliers: Tensor, **_: Any) -> Sample:  # type: ignore[override]
        for channel, factor in zip(apply_to_channel.tolist(), multipliers.tolist(), strict=True):
            sample["image"][channel] *= factor
        return sample


class Contrast(Transform):
    """ContrastTransform."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.contrast_range) else "a contrast drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        channels = chosen(shape[0], self.reference.p_per_channel, random)
        if not len(channels):
            return {"apply_to_channel": channels, "multipliers": None}
        factors = _per_channel(
            self.reference.contrast_range, len(channels), self.reference.synchronize_channels, random
        )
        return {"apply_to_channel": channels, "multipliers": factors}

    def apply(self, sample: Sample, apply_to_channel: Tensor, multipliers: Tensor | None, **_: Any) -> Sample:  # type: ignore[override]
        image = owned(sample)
        for channel, factor in zip(
            apply_to_channel.tolist(), [] if multipliers is None else multipliers.tolist(), strict=True
        ):
            values = image[channel]
            mean, _std = _moments(values)
            lowest, highest = _bounds(values) if self.reference.preserve_range else (-np.inf, np.inf)
            _stretch(values, mean, factor, mean, lowest, highest)
        return sample


class LowResolution(Transform):
    """SimulateLowResolutionTransform: nearest to the lower resolution, linearly back, plane by plane."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.scale) else "a scale drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        r = self.reference
        dim = len(shape) - 1
        if r.allowed_channels is None:
            channels = chosen(shape[0], r.p_per_channel, random).tolist()
        else:
            channels = [c for c in r.allowed_channels if random.rand(1) < r.p_per_channel]

        def of_axes() -> list[float]:
            return (
                [random.scalar(r.scale)] * dim if r.synchronize_axes else [random.scalar(r.scale) for _ in range(dim)]
            )

        if r.synchronize_channels:
            scales = torch.tensor([of_axes()] * len(channels), dtype=torch.float32)
        else:
            scales = torch.tensor([of_axes() for _ in channels], dtype=torch.float32)
        if len(scales) and r.ignore_axes is not None:
            scales[:, r.ignore_axes] = 1
        return {"apply_to_channel": channels, "scales": scales}

    def apply(self, sample: Sample, apply_to_channel: Any, scales: Tensor, **_: Any) -> Sample:  # type: ignore[override]
        image = owned(sample)
        for channel, of_axes in zip(apply_to_channel, scales.tolist(), strict=True):
            values = _volume(image[int(channel)])
            sizes = [round(n * scale) for n, scale in zip(image.shape[1:], of_axes, strict=True)]
            sizes = [1] * (3 - len(sizes)) + sizes
            small = values
            for axis, size in enumerate(sizes):
                if size != values.shape[axis]:
                    small = small.take(nearest_exact(values.shape[axis], size), axis=axis)
            if small is values:
                continue
            neighbours = [part for old, new in zip(sizes, values.shape, strict=True) for part in _linear(old, new)]
            _kernel("enlarge")(np.ascontiguousarray(small), *neighbours, values)
        return sample


class Gamma(Transform):
    """GammaTransform."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.gamma) else "a gamma drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        r = self.reference
        channels = chosen(shape[0], r.p_per_channel, random)
        n = len(channels)
        if not n:
            return {"apply_to_channel": channels, "retain_stats": None, "invert_image": None, "gamma": None}
        retain, invert = random.rand(n) < r.p_retain_stats, random.rand(n) < r.p_invert_image
        gamma = _per_channel(r.gamma, n, r.synchronize_channels, random)
        return {"apply_to_channel": channels, "retain_stats": retain, "invert_image": invert, "gamma": gamma}

    def apply(  # type: ignore[override]
        self, sample: Sample, apply_to_channel: Tensor, retain_stats: Any, invert_image: Any, gamma: Any, **_: Any
    ) -> Sample:
        image = owned(sample)
        for number, channel in enumerate(apply_to_channel.tolist()):
            values, sign = image[channel], -1.0 if invert_image[number] else 1.0
            lowest, highest = _bounds(values)
            extent = highest - lowest
            mean, deviation = _moments(values) if retain_stats[number] else (0.0, 0.0)
            # From 0 to 1, the inverted image from its other end; then back, in one pass each.
            start = highest if sign < 0 else lowest
            _stretch(values, start, sign / max(extent, _SMALLEST), 0.0)
            values.pow_(float(gamma[number]))
            if retain_stats[number]:
                mean_now, deviation_now = _moments(values)
                factor = extent * (deviation / max(deviation_now * extent, _SMALLEST))
                _stretch(values, mean_now, sign * factor, mean)
            else:
                _stretch(values, 0.0, sign * extent, start)
        return sample


class Mirror(Transform):
    """MirrorTransform, in place."""

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        return {"axes": [axis for axis in self.reference.allowed_axes if random.rand(1) < 0.5]}

    def apply(self, sample: Sample, axes: list[int], **_: Any) -> Sample:  # type: ignore[override]
        if axes:
            for key in ("image", "segmentation"):
                tensor = sample[key].contiguous()
                flips = [axis in axes for axis in range(tensor.ndim - 1)]
                if tensor.dtype in (torch.float32, torch.int16):
                    for channel in tensor:
                        _flip(tensor.dtype)(_volume(channel), *[False] * (3 - len(flips)), *flips)
                    sample[key] = tensor
                else:
                    sample[key] = tensor.flip([axis + 1 for axis in axes])
        return sample


def nearest_exact(old: int, new: int) -> np.ndarray:
    """(new,): which voxel of an axis torch's `interpolate` takes with mode nearest-exact."""
    return _nearest_exact(old, new)


@functools.lru_cache(maxsize=256)
def _nearest_exact(old: int, new: int) -> np.ndarray:
    places = interpolate(torch.arange(old, dtype=torch.float32)[None, None], new, mode="nearest-exact")
    return places[0, 0].long().numpy()


@functools.lru_cache(maxsize=256)
def _linear(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` voxels: lower and upper of `old` voxels and the weight of the upper, as torch enlarges."""
    ratio = np.float32(old) / np.float32(new)
    places = np.maximum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5), 0)
    lower = np.minimum(places.astype(np.int64), old - 1)
    weight = np.clip(places - lower.astype(np.float32), 0, 1).astype(np.float32)
    return lower, np.minimum(lower + 1, old - 1), weight


def _per_channel(wanted: Any, channels: int, synchronize: bool, random: Random) -> Tensor:
    """A number per channel, one for all where they are synchronised."""
    numbers = [random.scalar(wanted)] * channels if synchronize else [random.scalar(wanted) for _ in range(channels)]
    return torch.tensor(numbers, dtype=torch.float32)


def _volume(channel: Tensor) -> np.ndarray:
    """(z, y, x) of a channel, one plane for two dimensions; the same memory."""
    values = channel.numpy()
    return values[(None,) * (3 - values.ndim)]


def _bounds(values: Tensor) -> tuple[float, float]:
    lowest, highest = torch.aminmax(values)
    return lowest.item(), highest.item()


def _moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation."""
    out = np.empty(2)
    _kernel("moments")(values.view(-1).numpy(), out)
    return float(out[0]), float(out[1])


def _stretch(
    values: Tensor, centre: float, factor: float, shift: float, lowest: float = -np.inf, highest: float = np.inf
) -> None:
    numbers = (np.float32(x) for x in (centre, factor, shift, lowest, highest))
    _kernel("stretch")(values.view(-1).numpy(), *numbers)


@once
def _kernel(name: str) -> Any:
    from numba import float32

    from nnunet_ext.augmentation import intensity_kernels

    vector, volume, index = array(1, torch.float32), array(3, torch.float32), array(1, torch.int64)
    signatures = {
        "blur": [volume, vector, vector, vector],
        "enlarge": [volume, *[index, index, vector] * 3, volume],
        "moments": [vector, array(1, torch.float64)],
        "stretch": [vector, *[float32] * 5],
    }
    return compile_kernel(getattr(intensity_kernels, name), signatures[name])


@once
def _flip(dtype: torch.dtype) -> Any:
    from numba import boolean

    from nnunet_ext.augmentation import intensity_kernels

    return compile_kernel(intensity_kernels.flip, [array(3, dtype), boolean, boolean, boolean])
