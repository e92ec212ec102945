"""Lesion-wise Dice and HD95 as the BraTS 2023 challenges ranked by them.

One large lesion must not hide the small ones that a network missed, so each lesion of the reference is scored on its
own and every predicted lesion that belongs to none counts as a failure:

* Lesions of the reference are joined when their dilations (18-neighbourhood, `dilation` times) touch.
* A predicted lesion (26-connected) belongs to every reference lesion whose dilation it meets.
* Each reference lesion larger than `min_volume_mm3` is compared with the union of the predicted lesions that belong to
  it; with none, its Dice is 0 and its HD95 374 mm. Smaller ones are not scored, but what belongs to them is no error.
* Every predicted lesion that belongs to none, however small, adds Dice 0 and HD95 374 mm.
* The case's value is the mean over both; with nothing to score, Dice 1 and HD95 0.

Source: https://github.com/rachitsaluja/BraTS-2023-Metrics, described in Moawad et al., "The Brain Tumor Segmentation -
Metastases (BraTS-METS) Challenge 2023", arXiv:2306.00838. HD95 within a lesion is weighted by area (`surfels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from nnunet_ext.evaluation.surface import foreground_box
from nnunet_ext.evaluation.surfels import surfel_distances

# What a missed or invented lesion costs, mm: about the diagonal of the challenge's 240 x 240 x 155 images.
PENALTY_MM = 374.0


@dataclass(frozen=True)
class LesionRule:
    """Dilations that join lesions, and the volume (mm³) that a lesion must exceed to be scored."""

    dilation: int
    min_volume_mm3: float


def lesion_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], rule: LesionRule
) -> dict[str, float]:
    """Lesion-wise scores of one pair of 3D masks.

    Args:
        reference: every value but 0 is foreground.
        prediction: the same shape.
        spacing_mm: voxel size per axis.
        rule: the challenge's parameters.

    Returns:
        `Dice` and `HD95` (mm), means over lesions; `lesions_found`, `lesions_missed` (both of those that are large
        enough to be scored) and `lesions_false`.

    Raises:
        ValueError: the masks are not 3D.
    """
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(f"masks of shapes {reference.shape} and {prediction.shape}; lesions need two 3D masks alike")
    # Two dilations that touch outside the box of all foreground also touch within it: no margin is needed.
    box = foreground_box(reference, prediction)
    truth, guess = reference[box] != 0, prediction[box] != 0
    if truth.size == 0:
        return {"Dice": 1.0, "HD95": 0.0, "lesions_found": 0, "lesions_missed": 0, "lesions_false": 0}
    neighbours = ndimage.generate_binary_structure(3, 2)
    grown = ndimage.binary_dilation(truth, neighbours, iterations=rule.dilation)
    extents = np.asarray(cc3d.connected_components(grown, connectivity=26))
    predicted = np.asarray(cc3d.connected_components(guess, connectivity=26))
    lesions = np.where(truth, extents, 0)
    voxel_mm3 = float(np.prod(spacing_mm))

    meeting = (extents > 0) & (predicted > 0)
    belongs = np.unique(np.stack([extents[meeting], predicted[meeting]]), axis=1)
    lesion_boxes, predicted_boxes = ndimage.find_objects(lesions), ndimage.find_objects(predicted)
    dice, hd95, missed = [], [], 0
    for number, own_box in enumerate(lesion_boxes, start=1):
        if own_box is None or np.count_nonzero(lesions[own_box] == number) * voxel_mm3 <= rule.min_volume_mm3:
            continue
        partners = belongs[1, belongs[0] == number]
        if len(partners) == 0:
            missed += 1
            dice.append(0.0)
            hd95.append(PENALTY_MM)
            continue
        crop = _union([own_box, *(predicted_boxes[p - 1] for p in partners)])
        lesion, answer = lesions[crop] == number, np.isin(predicted[crop], partners)
        overlap, total = int((lesion & answer).sum()), int(lesion.sum()) + int(answer.sum())
        dice.append(2 * overlap / total)
        hd95.append(surfel_distances(lesion, answer, spacing_mm).hd95())
    false = int(predicted.max(initial=0)) - len(np.unique(belongs[1]))
    scored = len(dice) + false
    return {
        "Dice": sum(dice) / scored if scored else 1.0,
        "HD95": (sum(hd95) + false * PENALTY_MM) / scored if scored else 0.0,
        "lesions_found": len(dice) - missed,
        "lesions_missed": missed,
        "lesions_false": false,
    }


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
