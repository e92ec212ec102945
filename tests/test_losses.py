"""Losses where nothing counts, and of a part of the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nnunet_ext.losses import noise_error, over_chosen


def test_loss_of_the_chosen_samples_alone():
    logits = torch.randn(4, 3, 5, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0])[:, None].expand(4, 5)
    chosen = torch.tensor([True, False, False, True])
    loss = over_chosen(F.cross_entropy, logits, target, chosen)
    assert loss.item() == pytest.approx(0.5 * F.cross_entropy(logits[[0, 3]], target[[0, 3]]).item())
    loss.backward()
    assert (logits.grad.abs().amax((1, 2)) > 0).tolist() == [True, False, False, True]


def test_none_chosen_is_zero_with_a_gradient():
    weight = torch.randn(3, requires_grad=True)
    loss = over_chosen(F.cross_entropy, weight * torch.randn(4, 3), torch.zeros(4).long(), torch.zeros(4).bool())
    loss.backward()
    assert loss.item() == 0 and weight.grad.eq(0).all()


def test_noise_error_leaves_out_what_nobody_knows():
    prediction, target = torch.zeros(1, 2, 4), torch.tensor([[[1.0, 2.0, 9.0, 9.0], [3.0, 0.0, 9.0, 9.0]]])
    counted = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert noise_error(prediction, target, counted).item() == pytest.approx((1 + 9 + 4 + 0) / 4)
    assert noise_error(prediction, target, 0 * counted).item() == 0
