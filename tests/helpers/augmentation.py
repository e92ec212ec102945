"""nnU-Net's own augmentation, with every transform likelier than in training, and patches to put through it."""

from __future__ import annotations

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import gaussian_filter


def nnunet_transforms(patch, *, labels=3, cascade=False, regions=None, ignore=None, mask=False, probability=0.7):
    """nnU-Net's composed transform for training on a patch, as its trainer makes it."""
    dummy_2d = len(patch) == 3 and max(patch) / patch[0] > 3
    angle = np.pi if dummy_2d or len(patch) == 2 else np.pi / 6
    scales = [[1.0] * len(patch), [0.5] * len(patch), [0.5] + [0.25] * (len(patch) - 1)]
    composed = nnUNetTrainer.get_training_transforms(
        patch, (-angle, angle), scales, tuple(range(len(patch))), dummy_2d, [mask, False, False, False], cascade,
        list(range(1, labels + 1)), regions, ignore,
    )  # fmt: skip
    for transform in composed.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = probability
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = probability
            # Further out than nnU-Net goes, so that patches look outside.
            transform.p_synchronize_scaling_across_axes, transform.scaling = 0.5, (0.6, 1.6)
    return composed


def patch_sample(size, channels, labels, rng, *, cascade=False, dtype=torch.int16):
    """Image of noise around steps, and a smooth label map with some of nnU-Net's -1 where the type has it."""
    smooth = gaussian_filter(rng.standard_normal(size), 1.5)
    classes = np.digitize(smooth, np.quantile(smooth, np.linspace(0, 1, labels + 2)[1:-1]))
    if dtype.is_signed:
        classes[tuple(slice(0, max(1, n // 8)) for n in size)] = -1
    maps = [classes, np.clip(np.roll(classes, 2, -1), 0, None)] if cascade else [classes]
    image = rng.standard_normal((channels, *size)) + 3 * classes
    return {
        "image": torch.from_numpy(image.astype(np.float32)),
        "segmentation": torch.from_numpy(np.stack(maps)).to(dtype),
    }


def cloned(sample):
    """A copy whose changes stay its own."""

    def clone(value):
        return [part.clone() for part in value] if isinstance(value, list) else value.clone()

    return {key: clone(value) if isinstance(value, (torch.Tensor, list)) else value for key, value in sample.items()}
