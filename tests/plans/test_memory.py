"""The estimate of a training step's memory: known sums, and the ways memory must grow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nnunet_ext import models
from nnunet_ext.plans.estimate import estimate
from nnunet_ext.plans.memory import StepMemory, fits_gpu, on_gpu, training_step_memory
from nnunet_ext.plans.network import arguments_for_patch
from nnunet_ext.trainers.recipe import optimizer_and_schedule

FLOAT = 4
IMAGE, OUTPUT = 4 * 2 * 8 * 8 * FLOAT, 4 * 3 * 8 * 8 * FLOAT  # a batch of four with two channels, and with three
WEIGHTS = (2 * 3 + 3) * FLOAT
SCALARS = 2 * FLOAT  # the loss and its gradient


def pointwise(*more: nn.Module):
    return lambda: nn.Sequential(nn.Conv2d(2, 3, 1), *more)


def total(network, image):
    return network(image).sum()


def test_the_sum_by_hand():
    found = training_step_memory(pointwise(), (4, 2, 8, 8), total, optimiser_slots=2)
    # Most at the end of the forward pass, when there are no gradients yet.
    assert found == StepMemory(WEIGHTS, 2 * WEIGHTS, 0, IMAGE + OUTPUT + FLOAT)
    assert found.total == 3 * WEIGHTS + IMAGE + OUTPUT + FLOAT
    # With a single pixel, at the end of backward: weights and their gradients, image, loss and its gradient.
    found = training_step_memory(pointwise(), (1, 2, 1, 1), total, optimiser_slots=2)
    assert found.total == 4 * WEIGHTS + 2 * FLOAT + SCALARS


def test_what_backward_needs_is_kept():
    # A sigmoid keeps its result. At the first of them in backward: both results, and the gradient that is made.
    found = training_step_memory(pointwise(nn.Sigmoid(), nn.Sigmoid()), (4, 2, 8, 8), total, optimiser_slots=1)
    assert found.total == WEIGHTS + IMAGE + 3 * OUTPUT + SCALARS + WEIGHTS
    # Recomputing is worth it: a network that keeps nothing of its second half.
    in_place = training_step_memory(pointwise(nn.ReLU(inplace=True)), (4, 2, 8, 8), total, optimiser_slots=1)
    assert in_place.total < found.total


def test_shared_weights_and_buffers_count_once():
    def build():
        first = nn.Conv2d(2, 2, 1)
        return nn.Sequential(first, nn.BatchNorm2d(2), first)

    found = training_step_memory(build, (1, 2, 4, 4), total, optimiser_slots=1)
    trained = (2 * 2 + 2) + 2 * 2
    assert found.optimiser == trained * FLOAT
    assert found.parameters == (trained + 2 * 2) * FLOAT + 8  # running statistics, and the count of batches


def test_frozen_weights_have_no_gradient_and_no_state():
    def build():
        network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1))
        network[0].requires_grad_(False)
        return network

    found = training_step_memory(build, (1, 2, 4, 4), total, optimiser_slots=2)
    assert found.parameters == (9 + 12) * FLOAT
    assert found.optimiser == 24 * FLOAT


def test_half_precision_halves_what_convolutions_keep():
    def build():
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()) for _ in range(20)))

    full, half = (
        training_step_memory(build, (4, 2, 32, 32), total, optimiser_slots=1, half=h).activations for h in (False, True)
    )
    assert 0.5 < half / full < 0.6


def test_what_the_network_refuses_is_its_own_error():
    with pytest.raises(RuntimeError, match="expected input"):
        training_step_memory(pointwise(), (4, 5, 8, 8), total, optimiser_slots=1)


STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def test_larger_patches_and_batches_need_more():
    def need(edge, batch):
        patch = [16, edge, edge]
        return estimate("segmamba", arguments_for_patch("segmamba", "tiny", patch, STRIDES), 1, 3, patch, batch)

    small, wide, many = need(32, 2), need(64, 2), need(32, 4)
    assert small.total < wide.total and small.total < many.total and many.fixed == small.fixed
    # Activations are those of the samples.
    assert many.activations / small.activations == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("model", models.OWN, ids=lambda model: model.name)
def test_optimisers_keep_what_is_counted(model):
    trainer = models.load(f"{model.trainers[0].module}:{model.trainers[0].name}")
    network = nn.Conv2d(2, 3, 3)
    optimizer, _ = optimizer_and_schedule(network, trainer.recipe, epochs=2)
    network(torch.zeros(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    kept = [t for t in optimizer.state[network.weight].values() if t.numel() == network.weight.numel()]
    assert len(kept) == model.optimiser_slots


def test_what_a_gpu_needs_besides():
    assert on_gpu(0) > 0 and math.isclose(fits_gpu(on_gpu(5e9)), 5e9)
