"""Where simulated users click, and the loop that asks them."""

from __future__ import annotations

import torch

from nnunet_ext.prompts.rounds import interact
from nnunet_ext.prompts.simulate import centre_clicks, uniform_clicks
from nnunet_ext.prompts.types import NOT_A_POINT, Points


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Three samples: missed and wrongly marked voxels, a false alarm, and nothing wrong."""
    reference, prediction = torch.zeros(3, 9, 9, 9, dtype=torch.bool), torch.zeros(3, 9, 9, 9, dtype=torch.bool)
    reference[0, 1:4, 1:4, 1:4] = True  # 27 missed
    reference[0, 6:8, 6:8, 6:8] = True
    prediction[0, 6:8, 6:8, 6:8] = True
    prediction[0, 8, 0, 0] = True  # one wrong
    prediction[1, 2:7, 4, 4] = True
    reference[2, 4, 4, 4] = prediction[2, 4, 4, 4] = True
    return reference, prediction


def test_uniform_user_clicks_on_every_error_and_nothing_else():
    reference, prediction = scene()
    generator = torch.Generator().manual_seed(0)
    hit = torch.zeros_like(reference[0])
    for _ in range(400):
        clicks = uniform_clicks(reference, prediction, generator)
        assert clicks.found.tolist() == [True, True, False]
        at = tuple(clicks.index[0].tolist())
        assert bool(clicks.positive[0]) == bool(reference[0][at])
        hit[at] = True
        assert not clicks.positive[1]
    assert torch.equal(hit, reference[0] ^ prediction[0])


def test_centre_user_clicks_amid_the_largest_error():
    reference, prediction = scene()
    clicks = centre_clicks(reference, prediction)
    assert clicks.index[:2].tolist() == [[2, 2, 2], [2, 4, 4]]
    assert clicks.positive[:2].tolist() == [True, False]
    assert clicks.found.tolist() == [True, True, False]


def test_centre_user_measures_in_millimetres():
    """A bar of 5x5x9 voxels is thickest off its middle when the first axis is long in mm and its end is narrow."""
    reference = torch.zeros(1, 12, 20, 20, dtype=torch.bool)
    reference[0, 1:4, 2:17, 2:17] = True  # flat plate of three slices
    reference[0, 4:11, 2:7, 2:7] = True  # tall column on it
    empty = torch.zeros_like(reference)
    # In voxels the column, five wide and ten high, is deepest; with slices 10 mm apart the plate is.
    in_voxels = centre_clicks(reference, empty).index[0].tolist()
    thick = centre_clicks(reference, empty, (10.0, 1.0, 1.0)).index[0].tolist()
    assert in_voxels[1:] == [4, 4]
    assert thick[1:] == [9, 9] and 1 <= thick[0] < 4


def test_loop_shows_each_round_its_own_error_and_keeps_the_last_click_when_all_is_right():
    reference = torch.zeros(2, 6, 6, 6, dtype=torch.bool)
    reference[0, 2, 2, 2] = reference[0, 3, 3, 3] = True
    seen = []

    def step(points: Points, number: int) -> torch.Tensor:
        """Mark every voxel clicked positively so far."""
        seen.append((points.index.clone(), points.labels.clone()))
        logits = torch.full(reference.shape, -1.0)
        for sample, (index, labels) in enumerate(zip(points.index, points.labels, strict=True)):
            for at, label in zip(index.tolist(), labels.tolist(), strict=True):
                if label == 1:
                    logits[sample][tuple(at)] = 1.0
        return logits

    rounds = list(interact(reference, centre_clicks, step, 4, mask_only={1}))
    assert [(r[0] > 0).sum().item() for r in rounds] == [1, 1, 2, 2]
    index, labels = seen[-1]
    assert index.shape == (2, 3, 3)  # four rounds, one without a click
    assert {tuple(i) for i in index[0].tolist()} == {(2, 2, 2), (3, 3, 3)}
    assert torch.equal(index[0, 1], index[0, 2])  # nothing left to click on
    assert labels[1].tolist() == [NOT_A_POINT] * 3  # an object that is not there
