"""batchgeneratorsv2's transforms of label maps, and those of the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.morphology.morphology_helper import label_with_component_sizes
from torch import Tensor

from nnunet_ext.augmentation.intensity import nearest_exact
from nnunet_ext.augmentation.randomness import Random, is_drawable
from nnunet_ext.augmentation.transform import Sample, Transform


class MaskImage(Transform):
    """MaskImageTransform."""

    def apply(self, sample: Sample, **_: Any) -> Sample:
        r = self.reference
        if r.apply_to_channels:
            outside = sample["segmentation"][r.channel_idx_in_seg] < 0
            for channel in r.apply_to_channels:
                sample["image"][channel].masked_fill_(outside, r.set_outside_to)
        return sample


class RemoveLabel(Transform):
    """RemoveLabelTransform."""

    def apply(self, sample: Sample, **_: Any) -> Sample:
        r, labels = self.reference, sample["segmentation"]
        for channel in range(len(labels)) if r.segmentation_channels is None else r.segmentation_channels:
            labels[channel].masked_fill_(labels[channel] == r.label_value, r.set_to)
        return sample


class Regions(Transform):
    """ConvertSegmentationToRegionsTransform."""

    def apply(self, sample: Sample, **_: Any) -> Sample:
        labels = sample["segmentation"][self.reference.channel_in_seg]
        out = torch.zeros((len(self.reference.regions), *labels.shape), dtype=torch.bool)
        for region, values in zip(out, self.reference.regions, strict=True):
            for value in values.tolist():
                region |= labels == value
        return {**sample, "segmentation": out}


class DeepSupervision(Transform):
    """DownsampleSegForDSTransform: what is taken is looked up, not computed."""

    def apply(self, sample: Sample, **_: Any) -> Sample:
        labels = sample["segmentation"]
        sizes = labels.shape[1:]
        results = []
        for scale in self.reference.ds_scales:
            scales = scale if isinstance(scale, (tuple, list)) else [scale] * len(sizes)
            taken: Tensor = labels
            if not all(s == 1 for s in scales):
                # The last axis last: from fewer rows.
                for axis, (size, s) in enumerate(zip(sizes, scales, strict=True)):
                    taken = taken.index_select(axis + 1, torch.from_numpy(nearest_exact(size, round(size * s))))
            results.append(taken)
        return {**sample, "segmentation": results}


class LowerStage(Transform):
    """MoveSegAsOneHotToDataTransform: the earlier stage's labels become channels."""

    def apply(self, sample: Sample, **_: Any) -> Sample:
        r, image, labels = self.reference, sample["image"], sample["segmentation"]
        out = torch.empty((len(image) + len(r.all_labels), *image.shape[1:]), dtype=image.dtype)
        out[: len(image)] = image
        for channel, label in zip(out[len(image) :], r.all_labels, strict=True):
            torch.eq(labels[r.source_channel_idx], label, out=channel)
        if r.remove_channel_from_source:
            labels = labels[[i for i in range(len(labels)) if i != r.source_channel_idx]]
        return {**sample, "image": out, "segmentation": labels}


class BinaryOperator(Transform):
    """ApplyRandomBinaryOperatorTransform; batchgeneratorsv2 computes it."""

    @staticmethod
    def why_not(reference: Any) -> str | None:
        return None if is_drawable(reference.strel_size) else "a size drawn by a function"

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        r = self.reference
        order, applies = _shuffled(r.channel_idx, r.p_per_label, random)
        channels = [channel for channel, yes in zip(order, applies, strict=True) if yes]
        operators = [random.numpy.choice(r.any_of_these) for _ in channels]
        return {
            "apply_to_channels": channels,
            "operators": operators,
            "strel_size": [random.scalar(r.strel_size) for _ in channels],
        }

    def apply(self, sample: Sample, **parameters: Any) -> Sample:
        return self.reference.apply(sample, **parameters)


class RemoveComponent(Transform):
    """RemoveRandomConnectedComponentFromOneHotEncodingTransform."""

    def __call__(self, sample: Sample, random: Random) -> Sample:
        r, image = self.reference, sample["image"]
        order, applies = _shuffled(r.channel_idx, r.p_per_label, random)
        for channel in (channel for channel, yes in zip(order, applies, strict=True) if yes):
            mask = image[channel].numpy().astype(bool)
            if not mask.any():
                continue
            components, sizes = label_with_component_sizes(mask)
            most = mask.size * r.dont_do_if_covers_more_than_x_percent
            small = [component for component, size in sizes.items() if size < most]
            if small:
                where = torch.from_numpy(components == random.numpy.choice(small))
                image[channel].masked_fill_(where, 0)
                others = [other for other in r.channel_idx if other != channel]
                if random.uniform() < r.fill_with_other_class_p and others:
                    image[int(random.numpy.choice(others))].masked_fill_(where, 1)
        return sample


def _shuffled(channels: Sequence[int], probability: float, random: Random) -> tuple[list[int], np.ndarray]:
    """Channels in random order, and which of them to change."""
    order = list(channels)
    random.numpy.shuffle(order)
    return order, (random.rand(len(order)) < probability).numpy()
