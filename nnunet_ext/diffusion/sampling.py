"""How predictions of a diffusion model are drawn: settings from the environment, and noise that repeats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.diffusion.fusion import FUSIONS, Fusion
from nnunet_ext.diffusion.samplers import SAMPLERS, Sampler
from nnunet_ext.environment import decimal, whole_number
from nnunet_ext.errors import TrainingError


@dataclass(frozen=True)
class Sampling:
    """Settings that can change at every prediction, without training anew.

    Attributes:
        sampler: one of `SAMPLERS`; NNUNET_EXT_SAMPLER.
        steps: evaluations of the diffusion model per sample, 0 for the condition model's segmentation alone;
            NNUNET_EXT_SAMPLING_STEPS.
        samples: drawn per window; NNUNET_EXT_SAMPLES.
        fusion: of the samples, one of `FUSIONS`; NNUNET_EXT_FUSION.
        seed: of the noise; NNUNET_EXT_SAMPLING_SEED.
    """

    sampler: Sampler
    steps: int
    samples: int
    fusion: Fusion
    seed: int = 0

    def changed(self, timesteps: int, environment: Mapping[str, str] = os.environ) -> Sampling:
        """These settings with what the environment asks for.

        Raises:
            TrainingError: a value that is not allowed; the message names variable, value and what is allowed.
        """

        def choice(name: str, choices: Sequence[str], default: str) -> Any:
            text = environment.get(name, "").strip() or default
            if text not in choices:
                raise TrainingError(f"{name}={text!r} must be one of {', '.join(choices)}")
            return text

        steps = self.steps
        text = environment.get("NNUNET_EXT_SAMPLING_STEPS", "").strip()
        if text:
            number = decimal(text)
            if number is None or number > timesteps:
                raise TrainingError(
                    f"NNUNET_EXT_SAMPLING_STEPS={text!r} must be a whole number from 0 (the condition model alone) to "
                    f"{timesteps}"
                )
            steps = number
        text = environment.get("NNUNET_EXT_SAMPLING_SEED", "").strip()
        seed = decimal(text) if text else self.seed
        if seed is None:
            raise TrainingError(f"NNUNET_EXT_SAMPLING_SEED={text!r} must be a whole number from 0, at most 15 digits")
        return Sampling(
            choice("NNUNET_EXT_SAMPLER", SAMPLERS, self.sampler),
            steps,
            whole_number(environment, "NNUNET_EXT_SAMPLES") or self.samples,
            choice("NNUNET_EXT_FUSION", FUSIONS, self.fusion),
            seed,
        )


@dataclass(frozen=True)
class Place:
    """Where a window lies in its volume, all in voxels of the volume that is predicted.

    Attributes:
        origin: first voxel, three axes.
        volume: shape of the volume, three axes.
        mirrored: axes of the window (from 0) that are reversed.
    """

    origin: tuple[int, ...]
    volume: tuple[int, ...]
    mirrored: tuple[int, ...] = ()


def draw_noise(numbers: Sequence[int], channels: int, patch: Sequence[int], place: Place | None = None) -> Tensor:
    """Standard normal noise that depends on nothing but the arguments.

    Without a place it is the same for every window of one shape. With one, it is cut from a field of the volume, so
    that windows agree where they overlap, mirrored or not. The field is never held: each of its planes has its own
    seed.

    Args:
        numbers: what the noise belongs to: seed, sample, step.
        channels: of the noise.
        patch: shape of the window, two or three axes.
        place: where it lies.

    Returns:
        (channels, *patch), single precision, on the CPU, so that devices do not matter.
    """
    if place is None:
        return torch.randn(channels, *patch, generator=_generator(numbers))
    plane, origin = place.volume[1:], place.origin
    depth = patch[0] if len(patch) == 3 else 1
    rows, columns = (slice(o, o + n) for o, n in zip(origin[1:], patch[-2:], strict=True))
    planes = [
        torch.randn(channels, *plane, generator=_generator((*numbers, origin[0] + i)))[:, rows, columns]
        for i in range(depth)
    ]
    noise = torch.stack(planes, 1) if len(patch) == 3 else planes[0]
    return noise.flip([axis + 1 for axis in place.mirrored])


def _generator(numbers: Sequence[int]) -> torch.Generator:
    state = np.random.SeedSequence(tuple(numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)
