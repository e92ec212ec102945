"""From nnU-Net's composed transform to the same in this package's kernels, transform by transform.

nnU-Net's trainer says what is done (`get_training_transforms`); whoever overrides it is obeyed. A class that is not
known here, a subclass of a known one, and settings beyond nnU-Net's keep batchgeneratorsv2's computation.
"""

from __future__ import annotations

from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunet_ext.augmentation import intensity, labels
from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.augmentation.spatial import Spatial
from nnunet_ext.augmentation.transform import Sample, Transform, Unchanged
from nnunet_ext.ops.compiled import why_no_numba

COUNTERPARTS: dict[type[BasicTransform], type[Transform]] = {
    SpatialTransform: Spatial,
    GaussianNoiseTransform: intensity.Noise,
    GaussianBlurTransform: intensity.Blur,
    MultiplicativeBrightnessTransform: intensity.Brightness,
    ContrastTransform: intensity.Contrast,
    SimulateLowResolutionTransform: intensity.LowResolution,
    GammaTransform: intensity.Gamma,
    MirrorTransform: intensity.Mirror,
    MaskImageTransform: labels.MaskImage,
    RemoveLabelTransform: labels.RemoveLabel,
    ConvertSegmentationToRegionsTransform: labels.Regions,
    DownsampleSegForDSTransform: labels.DeepSupervision,
    MoveSegAsOneHotToDataTransform: labels.LowerStage,
    ApplyRandomBinaryOperatorTransform: labels.BinaryOperator,
    RemoveRandomConnectedComponentFromOneHotEncodingTransform: labels.RemoveComponent,
}


class TransformFailed(Exception):
    """A transform raised what is this exception's cause; its message is the transform's name."""


class Sometimes(Transform):
    """RandomTransform."""

    def __init__(self, reference: RandomTransform):
        super().__init__(reference)
        self.inner = convert(reference.transform)

    @property
    def name(self) -> str:
        return self.inner.name

    def __call__(self, sample: Sample, random: Random) -> Sample:
        return self.inner(sample, random) if random.rand(1).item() < self.reference.apply_probability else sample


class Pipeline(Transform):
    """ComposeTransforms.

    Attributes:
        steps: the transforms.
        unchanged: names of those that batchgeneratorsv2, or a user's class, computes as it is.
    """

    def __init__(self, reference: ComposeTransforms):
        super().__init__(reference)
        self.steps = _converted(list(reference.transforms))
        self.unchanged = [name for step in self.steps for name in _unchanged(step)]

    def __call__(self, sample: Sample, random: Random) -> Sample:
        return self.run(self.steps, sample, random)

    @staticmethod
    def run(steps: list[Transform], sample: Sample, random: Random) -> Sample:
        """Steps one after the other.

        Raises:
            TransformFailed: from what a step raised.
        """
        for step in steps:
            try:
                sample = step(sample, random)
            except TransformFailed:
                raise
            except Exception as error:
                raise TransformFailed(step.name) from error
        return sample


def convert(transform: BasicTransform) -> Transform:
    """What does the same as a transform of nnU-Net's; unknown ones are used as they are."""
    if type(transform) is ComposeTransforms:
        return Pipeline(transform)
    if type(transform) is RandomTransform:
        return Sometimes(transform)
    own = COUNTERPARTS.get(type(transform))
    if own is None or why_no_numba() or own.why_not(transform):
        return Unchanged(transform)
    return own(transform)


def _converted(transforms: list[Any]) -> list[Transform]:
    steps: list[Transform] = []
    while transforms:
        kinds = [type(transform) for transform in transforms[:3]]
        if kinds == [Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform] and not (
            why_no_numba() or Spatial.why_not(transforms[1])
        ):
            steps.append(Spatial(transforms[1], planes=True))
            transforms = transforms[3:]
        else:
            steps.append(convert(transforms[0]))
            transforms = transforms[1:]
    return steps


def _unchanged(step: Transform) -> list[str]:
    if isinstance(step, Pipeline):
        return step.unchanged
    if isinstance(step, Sometimes):
        return _unchanged(step.inner)
    return [step.name] if isinstance(step, Unchanged) else []
