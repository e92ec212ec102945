"""One batch of nnU-Net's training, as a function of its number."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_ext.augmentation.convert import Pipeline, TransformFailed, convert
from nnunet_ext.augmentation.patches import Case, choose_box
from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.augmentation.spatial import Spatial, Window
from nnunet_ext.augmentation.threads import Abandoned
from nnunet_ext.augmentation.transform import Sample
from nnunet_ext.errors import TrainingError, reason_of


class Batches:
    """What nnU-Net's loader makes, from random numbers that belong to the batch.

    Args:
        loader: nnU-Net's, with its data set, patch sizes and transforms, for settings; it makes nothing itself.
        seed: of the run.
        stream: tells this sequence of batches from others of the run: rank, training or validation.
        pinned: make batches in memory that a GPU reads by itself.
    """

    def __init__(self, loader: nnUNetDataLoader, seed: int, stream: tuple[int, ...] = (), pinned: bool = False):
        self.loader, self.seed, self.stream, self.pinned = loader, seed, stream, pinned
        transforms = [] if loader.transforms is None else [convert(loader.transforms)]
        self._steps = transforms[0].steps if transforms and isinstance(transforms[0], Pipeline) else transforms
        self.unchanged = transforms[0].unchanged if transforms and isinstance(transforms[0], Pipeline) else []

    def make(self, number: int, go_on: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """The batch of this number, as nnU-Net's: data, target and keys.

        Args:
            go_on: asked between samples.

        Raises:
            TrainingError: a sample could not be made; names the case and the transform.
            Abandoned: go_on said no.
        """
        loader = self.loader
        random = Random.of_batch(self.seed, *self.stream, number)
        keys = random.numpy.choice(loader.indices, loader.batch_size, replace=True, p=loader.sampling_probabilities)
        batch: dict[str, Any] = {"data": None, "target": None, "keys": keys}
        with torch.no_grad():
            for j, key in enumerate(keys):
                if not go_on():
                    raise Abandoned
                try:
                    case = self._case(str(key), batch, random)
                    sample = self._sample(case, self._shows_foreground(j, random), random)
                except Exception as error:
                    raise TrainingError(_about(str(key), error)) from error
                batch["data"] = self._put(batch["data"], j, sample["image"].float())
                batch["target"] = self._put(batch["target"], j, sample["segmentation"])
        return batch

    def _shows_foreground(self, j: int, random: Random) -> bool:
        loader = self.loader
        if loader.get_do_oversample == loader._probabilistic_oversampling:
            return random.uniform() < loader.oversample_foreground_percent
        return loader.get_do_oversample(j)

    def _case(self, key: str, batch: dict[str, Any], random: Random) -> Case:
        """A case to cut a patch from; `batch` may be told how it is looked at."""
        return Case(self.loader._data, key)

    def _sample(self, case: Case, foreground: bool, random: Random) -> Sample:
        """Image and labels of one sample, transformed."""
        loader, steps = self.loader, self._steps
        first = choose_box(loader, case.size, foreground, case.places, random)
        cut = tuple(int(n) for n in loader.patch_size)
        if not steps or not isinstance(steps[0], Spatial):
            return Pipeline.run(steps, self._flat(case.read(first, Window.whole(cut))), random)
        spatial = steps[0]
        axes = len(spatial.patch_size)
        parameters = spatial.draw(cut, random)
        affine, center = parameters["affine"], parameters["center_location_in_pixels"]
        seen = spatial.window(cut[-axes:], affine, center)
        lead = cut[: len(cut) - axes]  # planes are seen whole
        window = Window(cut, (0,) * len(lead) + seen.origin, lead + seen.shape)
        sample = self._flat(case.read(first, window))
        try:
            sample = spatial.apply(sample, affine, center, window=seen)
        except Exception as error:
            raise TransformFailed(spatial.name) from error
        return Pipeline.run(steps[1:], sample, random)

    def _flat(self, sample: Sample) -> Sample:
        """Without the axis of one slice where the patch is a plane."""
        return {k: v[:, 0] for k, v in sample.items()} if self.loader.patch_size_was_2d else sample

    def _put(self, whole: Any, j: int, part: Tensor | list[Tensor]) -> Any:
        """Sample j's part of the batch in its place; the batch's memory is made for the first."""
        if isinstance(part, list):
            return [self._put(w, j, p) for w, p in zip(whole or [None] * len(part), part, strict=True)]
        if whole is None:
            whole = torch.empty((self.loader.batch_size, *part.shape), dtype=part.dtype, pin_memory=self.pinned)
        whole[j] = part
        return whole


def _about(case: str, error: Exception) -> str:
    """One line about a sample that could not be made, with the place in the code where a transform failed."""
    if not isinstance(error, TransformFailed):
        return f"case {case} cannot be read: {reason_of(error)}"
    cause = error.__cause__ or error
    last = traceback.extract_tb(cause.__traceback__)[-1]
    return f"case {case}, transform {error}: {reason_of(cause)} ({Path(last.filename).name}, line {last.lineno})"
