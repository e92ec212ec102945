"""Networks whose answer is known, in the place of UniverSeg."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Copy(nn.Module):
    """Answers with the label of the support that looks most like the target, sure of every pixel."""

    multiple = 8

    def forward(self, target: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
        distances = (support_images - target[:, None]).square().flatten(2).mean(dim=2)
        best = distances.argmin(dim=1)
        return torch.stack([support_labels[b, i] for b, i in enumerate(best)]) * 20 - 10


class MeanLabel(nn.Module):
    """Answers with the mean label as a probability, whatever the target."""

    multiple = 8

    def forward(self, target: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
        return support_labels.mean(dim=1).clamp(1e-4, 1 - 1e-4).logit()
