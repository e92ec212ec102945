"""MedSegDiff-V2 as a network nnU-Net can train and run: the sampler lives behind `forward(x) -> logits`.

nnU-Net hands over one window after another and says neither case nor position. Unless a predictor that knows sets
`place`, the noise is therefore the same for every window.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import crop_to, pad_to_multiple
from nnunet_ext.architectures.medsegdiff.condition import ConditionModel
from nnunet_ext.architectures.medsegdiff.model import Condition, MedSegDiffV2, stage_widths, total_stride
from nnunet_ext.diffusion import schedule as schedules
from nnunet_ext.diffusion.fusion import fuse
from nnunet_ext.diffusion.process import PREDICTIONS, Prediction, q_sample, target
from nnunet_ext.diffusion.samplers import sample
from nnunet_ext.diffusion.sampling import Place, Sampling, draw_noise

SCHEDULES = {"linear": schedules.linear, "cosine": schedules.cosine}
# What the measurements in docs/medsegdiff.md favour per second.
DEFAULT_SAMPLING = {"sampler": "ddim", "steps": 2, "samples": 1, "fusion": "mean"}
ONE_OUTPUT = "MedSegDiff-V2 has one output; deep supervision must be off"
# Samples per evaluation of the diffusion model: memory grows with them.
SAMPLES_AT_ONCE = 5
# Probability kept for the other classes where samples are fused to labels, and for any class where it would be 0.
UNSURE = 1e-3


@dataclass(frozen=True)
class TrainingOutput:
    """One training step.

    Attributes:
        prediction: of the diffusion model, (batch, num_classes, *patch); for x0 as logits.
        target: what it should be, same shape, with x0 in [-1, 1].
        t: time steps, (batch,).
        anchor: logits of the condition model, (batch, num_classes, *patch).
        predicted: what the diffusion model predicts.
    """

    prediction: Tensor
    target: Tensor
    t: Tensor
    anchor: Tensor
    predicted: Prediction


class Averaged(nn.Module):
    """A network and the mean of its weights over training, which is what predicts; both are in the checkpoint.

    Args:
        network: what is trained.
        reduction: voxels of the input per voxel of the deepest grid, per axis.
    """

    def __init__(self, network: nn.Module, reduction: Sequence[int]):
        super().__init__()
        self.deep_supervision = False
        self.reduction = tuple(reduction)
        self.trained = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))
        self.updates: Tensor

    @torch.no_grad()
    def update_average(self, decay: float = 0.999) -> None:
        """Move the mean weights towards the trained ones; faster in the first steps, when these still mean little."""
        self.updates += 1
        n = int(self.updates)
        share = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_([*self.average.parameters()], [*self.trained.parameters()], share)


class DirectControl(Averaged):
    """The condition model of MedSegDiff-V2 on its own: what its diffusion has to beat.

    Args:
        input_channels: channels of the image.
        num_classes: output channels.
        deep_supervision: must be False, as for the network it is the control of.
        **arguments: of `SampledMedSegDiffV2`; those of the diffusion have no meaning here.
    """

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False, **arguments: Any):
        if deep_supervision:
            raise ValueError(ONE_OUTPUT)
        strides, kernel_sizes = arguments["strides"], arguments["kernel_sizes"]
        features = stage_widths(arguments.get("width", 32), arguments.get("max_width", 320), len(strides))
        network = ConditionModel(input_channels, num_classes, features, strides, kernel_sizes)
        super().__init__(network, total_stride(strides))

    def forward(self, x: Tensor) -> Tensor:
        """Segment: (batch, input_channels, *patch) -> logits (batch, num_classes, *patch)."""
        logits, _, _ = (self.trained if self.training else self.average)(pad_to_multiple(x, self.reduction))
        return crop_to(logits, x.shape[2:])


class SampledMedSegDiffV2(Averaged):
    """MedSegDiff-V2 behind nnU-Net's interface.

    Args:
        input_channels: channels of the image.
        num_classes: output channels: labels with the background, or regions.
        deep_supervision: must be False; a sampler has one output.
        prediction: what the diffusion model predicts: "x0" (the mask), "noise" (the paper) or "v".
        schedule: "linear" (Ho et al., the paper) or "cosine".
        timesteps: T.
        sampling: settings of prediction, those of `Sampling` by name.
        recycle: share of the training batches, drawn by the trainer, whose noisy mask is made from the model's own
            prediction of pure noise instead of the reference, as it is when sampling (ImgX-DiffSeg, arXiv:2303.06040);
            x0 only.
        **sizes: of `MedSegDiffV2`.

    Raises:
        ValueError: deep supervision asked for, an unknown prediction or schedule, sizes that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        prediction: Prediction = "x0",
        schedule: str = "linear",
        timesteps: int = 1000,
        sampling: dict[str, Any] | None = None,
        recycle: float = 0.0,
        **sizes: Any,
    ):
        if deep_supervision:
            raise ValueError(ONE_OUTPUT)
        if prediction not in PREDICTIONS or schedule not in SCHEDULES:
            raise ValueError(
                f"prediction {prediction!r} must be one of {', '.join(PREDICTIONS)}, schedule {schedule!r} one of "
                f"{', '.join(SCHEDULES)}"
            )
        if recycle and prediction != "x0":
            raise ValueError(f"recycle needs prediction='x0', not {prediction!r}")
        network = MedSegDiffV2(input_channels, num_classes, **sizes)
        super().__init__(network, network.reduction)
        self.num_classes = num_classes
        self.prediction: Prediction = prediction
        self.schedule = SCHEDULES[schedule](timesteps)
        self.recycle = recycle
        self.sampling = Sampling(**(sampling or DEFAULT_SAMPLING)).changed(timesteps)
        # Set by predictors that know more than nnU-Net's: where the window lies, and which sample comes first.
        self.place: Place | None = None
        self.first_sample = 0
        # Whether outputs are regions, which may overlap; set by the trainer and kept with the weights.
        self.register_buffer("has_regions", torch.zeros(1, dtype=torch.bool))
        self.has_regions: Tensor

    # Training --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, x0: Tensor | None = None, recycle: bool = False) -> Tensor | TrainingOutput:
        """Segment windows; with the true mask, one training step of the diffusion.

        Args:
            x: (batch, input_channels, *patch), any patch; padded with zeros at the end to multiples of the strides.
            x0: in training, the mask in [-1, 1], (batch, num_classes, *patch), 0 where nobody knows.
            recycle: in training, noise the model's own first guess instead of the mask.

        Returns:
            Logits (batch, num_classes, *patch) of the fused samples, or what the loss needs.
        """
        patch = x.shape[2:]
        padded = pad_to_multiple(x, self.reduction)
        if x0 is not None:
            return self._train(padded, pad_to_multiple(x0, self.reduction), patch, recycle)
        logits = [self._segment(padded[i : i + 1], patch) for i in range(len(x))]
        return torch.cat(logits)

    def _train(self, x: Tensor, x0: Tensor, patch: torch.Size, recycle: bool) -> TrainingOutput:
        condition = self.trained.condition(x)
        t = torch.randint(len(self.schedule), (len(x),), device=x.device)
        noise = torch.randn_like(x0)
        known = self._first_guess(x0, condition) if recycle else x0
        x_t = q_sample(self.schedule, known, t, noise)
        prediction = self.trained.denoise(x_t, t, condition)
        wanted = target(self.prediction, self.schedule, x0, noise, t)
        return TrainingOutput(
            crop_to(prediction, patch), crop_to(wanted, patch), t, crop_to(condition.logits, patch), self.prediction
        )

    @torch.no_grad()
    def _first_guess(self, x0: Tensor, condition: Condition) -> Tensor:
        """The mask according to the model that sees noise alone; ignored voxels stay unknown."""
        last = torch.full((len(x0),), len(self.schedule) - 1, device=x0.device)
        guess = 2 * self.probabilities(self.trained.denoise(torch.randn_like(x0), last, condition)) - 1
        return torch.where((x0 == 0).all(1, keepdim=True), x0, guess)

    # Prediction ------------------------------------------------------------------------------------------------

    def _segment(self, x: Tensor, patch: torch.Size) -> Tensor:
        """Logits (1, num_classes, *patch) of one padded window."""
        condition = self.average.condition(x)
        if not self.sampling.steps:
            return crop_to(condition.logits, patch).clone()
        return self.fuse(self._draw(condition, patch))

    def _draw(self, condition: Condition, patch: torch.Size) -> Tensor:
        """Probabilities of each sample, (samples, num_classes, *patch)."""
        device = condition.logits.device

        def model(x_t: Tensor, t: Tensor) -> Tensor:
            # All samples are at one step: what depends on it alone is computed once.
            output = self.average.denoise(x_t, t[:1], condition).float()
            return 2 * self.probabilities(output) - 1 if self.prediction == "x0" else output

        drawn = []
        for first in range(0, self.sampling.samples, SAMPLES_AT_ONCE):
            numbers = range(first, min(first + SAMPLES_AT_ONCE, self.sampling.samples))

            def noise(step: int, numbers: Sequence[int] = numbers) -> Tensor:
                fields = [self._noise(number, step, patch) for number in numbers]
                return pad_to_multiple(torch.stack(fields).to(device), self.reduction)

            x0 = sample(
                model, noise(len(self.schedule)), self.schedule, steps=self.sampling.steps,
                sampler=self.sampling.sampler, prediction=self.prediction, noise=noise,
            )  # fmt: skip
            drawn.append(crop_to((x0 + 1) / 2, patch))
        return torch.cat(drawn)

    def _noise(self, number: int, step: int, patch: torch.Size) -> Tensor:
        numbers = (self.sampling.seed, self.first_sample + number, step)
        return draw_noise(numbers, self.num_classes, patch, self.place)

    def fuse(self, probabilities: Tensor) -> Tensor:
        """Logits (1, num_classes, *grid) of samples (samples, num_classes, *grid)."""
        fused = fuse(probabilities, self.sampling.fusion, regions=bool(self.has_regions))[None]
        fused = fused.clamp(UNSURE, 1 - UNSURE)
        return fused.logit() if self.has_regions else fused.log()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of classes or of regions, (batch, num_classes, *grid)."""
        return logits.float().sigmoid() if self.has_regions else logits.float().softmax(1)
