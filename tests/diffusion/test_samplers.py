"""Samplers: the published code's single steps, exact solutions of a Gaussian toy, and any number of steps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import make_input

from nnunet_ext.diffusion.process import q_posterior, q_sample, target
from nnunet_ext.diffusion.samplers import SAMPLERS, ddim_step, dpm_solver_step, sample
from nnunet_ext.diffusion.schedule import cosine, linear

GOLDEN = Path(__file__).parent.parent / "golden"

golden = np.load(GOLDEN / "diffusion.npz")
SPREAD = 0.5
"""Standard deviation of the toy's images, which are independent Gaussian voxels of mean 0."""


def toy_network(schedule, kind="x0"):
    """The best possible network for the toy: the conditional mean of x_0, as x_0, noise or v."""

    def network(x, t):
        left = torch.as_tensor(schedule.alphas_cumprod, dtype=x.dtype)[t].reshape(-1, *[1] * (x.ndim - 1))
        x0 = left.sqrt() * SPREAD**2 / (left * SPREAD**2 + 1 - left) * x
        noise = (x - left.sqrt() * x0) / (1 - left).sqrt()
        return target(kind, schedule, x0, noise, t)

    return network


def noise_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_of(name):
    return torch.from_numpy(make_input(name, (1, 1, 8, 8)))


@pytest.mark.parametrize("step", [1, 500, 999])
def test_golden_ddim_step(step):
    schedule, x_t, x0 = linear(), image_of("xt"), torch.from_numpy(golden[f"pmv_pred_xstart_t{step}"])
    # The published code takes 1 - alphas_cumprod in single precision: at the first steps 8e-5 of sigma are rounding.
    rounded = float(torch.sqrt(1 - torch.tensor(schedule.alphas_cumprod[step - 1], dtype=torch.float32)))
    direction = (x_t - float(schedule.alpha[step]) * x0) / float(schedule.sigma[step])
    theirs = golden[f"ddim_step_eta0_t{step}"] - ((rounded - schedule.sigma[step - 1]) * direction).numpy()
    assert np.abs(ddim_step(schedule, x_t, x0, step).numpy() - theirs).max() <= 1e-5


def test_golden_dpm_solver_steps():
    """The published steps are in single precision, values up to 3."""
    first = dpm_solver_step(linear(), image_of("xt"), image_of("m_prev0"), 899, 799)
    assert np.abs(first.numpy() - golden["dpmpp_first_update"]).max() <= 1e-5
    second = dpm_solver_step(linear(), image_of("xt"), image_of("m_prev0"), 899, 799, (image_of("m_prev1"), 949))
    assert np.abs(second.numpy() - golden["dpmpp_2m_update"]).max() <= 1e-5


def test_ddim_with_eta_1_draws_from_the_posterior():
    schedule, x_t, x0, fresh = (
        linear(100),
        noise_of(2, 1, 4, 4),
        noise_of(2, 1, 4, 4, seed=1),
        noise_of(2, 1, 4, 4, seed=2),
    )
    for t in (0, 1, 50, 99):
        mean, variance, _ = q_posterior(schedule, x0, x_t, torch.tensor([t, t]))
        torch.testing.assert_close(ddim_step(schedule, x_t, x0, t, 1.0, fresh), mean + variance.sqrt() * fresh)


def test_first_order_dpm_solver_is_ddim():
    schedule, x, x0 = cosine(50), noise_of(1, 2, 3, 3), noise_of(1, 2, 3, 3, seed=1)
    torch.testing.assert_close(dpm_solver_step(schedule, x, x0, 30, 29), ddim_step(schedule, x, x0, 30))


@pytest.mark.parametrize("kind", ["x0", "noise", "v"])
def test_deterministic_samplers_reach_the_exact_solution(kind):
    """The toy's equation is solved by x_0 = spread / sqrt(alpha_T^2 spread^2 + sigma_T^2) x_T."""
    schedule, x = linear(1000), noise_of(3, 1, 4, 4)
    left = schedule.alphas_cumprod[-1]
    exact = SPREAD / math.sqrt(left * SPREAD**2 + 1 - left) * x
    common = {"prediction": kind, "clip": False}
    network = toy_network(schedule, kind)

    def error(**options):
        return float((sample(network, x, schedule, **common, **options) - exact).abs().max() / exact.abs().max())

    assert error(sampler="ddim", steps=1000) < 0.005
    coarse, fine = error(sampler="ddim", steps=20), error(sampler="dpm-solver++", steps=20)
    assert coarse < 0.2 and fine < coarse / 2.5
    assert error(sampler="dpm-solver++", steps=40) < fine / 2


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"eta": 0.5}], ids=str)
def test_stochastic_samplers_have_the_images_spread(options):
    schedule, x = linear(1000), noise_of(4, 1, 50, 50)
    options |= {"noise": lambda step: noise_of(*x.shape, seed=step), "steps": 200, "clip": False}
    x0 = sample(toy_network(schedule), x, schedule, **options)
    # The posterior's variance is a little too small for steps of five.
    assert float(x0.std()) == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1000])
@pytest.mark.parametrize("grid", [(5, 4), (3, 2, 4)], ids=str)
def test_any_number_of_steps(sampler, steps, grid):
    """A network that knows the answer finds it, is asked once per step, and is told the trained chain's steps."""
    schedule, asked = linear(1000), []
    answer = noise_of(2, 3, *grid).clamp(-1, 1).float()

    def network(x, t):
        assert x.shape == answer.shape and t.shape == (2,) and t.dtype == torch.int64
        assert torch.isfinite(x).all()
        asked.append(int(t[0]))
        # How noisy x is must fit the step that the network is told.
        expected = float(schedule.sigma[asked[-1]])
        rest = (x - float(schedule.alpha[asked[-1]]) * answer).std()
        assert float(rest) == pytest.approx(expected, rel=0.4)
        return answer

    out = sample(network, noise_of(2, 3, *grid, seed=1).float(), schedule, steps=steps, sampler=sampler)
    assert torch.equal(out, answer)
    assert len(asked) == steps and asked == sorted(asked, reverse=True) and asked[0] == 999


def test_one_ddim_step_is_the_clipped_answer_to_pure_noise():
    x = 3 * noise_of(2, 1, 4, 4)
    assert torch.equal(sample(lambda x, t: x, x, linear(), steps=1), x.clamp(-1, 1))


def test_batch_members_do_not_know_each_other():
    schedule, x = linear(100), noise_of(3, 2, 4, 4)
    network = toy_network(schedule)
    for sampler in ("ddim", "dpm-solver++"):
        together = sample(network, x, schedule, steps=5, sampler=sampler)
        alone = torch.cat([sample(network, x[i : i + 1], schedule, steps=5, sampler=sampler) for i in range(3)])
        torch.testing.assert_close(together, alone)


def test_fresh_noise_is_asked_once_per_step_left_and_decides_the_result():
    schedule, x, asked = linear(100), noise_of(1, 1, 4, 4), []

    def noise(step):
        asked.append(step)
        return noise_of(1, 1, 4, 4, seed=step)

    first = sample(toy_network(schedule), x, schedule, steps=4, sampler="ddpm", noise=noise)
    assert asked == [99, 74, 49]
    assert torch.equal(first, sample(toy_network(schedule), x, schedule, steps=4, sampler="ddpm", noise=noise))
    assert not torch.equal(first, sample(toy_network(schedule), x, schedule, steps=4, sampler="ddpm"))


def test_start_refines_an_image_that_was_noised_to_that_step():
    schedule, asked = linear(1000), []
    image = noise_of(1, 1, 6, 6).clamp(-1, 1)

    def network(x, t):
        asked.append(int(t))
        return image

    x = q_sample(schedule, image, torch.tensor([299]), noise_of(1, 1, 6, 6, seed=1))
    assert torch.equal(sample(network, x, schedule, steps=3, start=299), image)
    assert asked == [299, 199, 99]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": "euler"}, "expected one of ddim, ddpm"),
        ({"prediction": "eps"}, "expected one of noise, x0, v"),
        ({"steps": 0}, "expected 1 to 100"),
        ({"steps": 101}, "expected 1 to 100"),
        ({"steps": 11, "start": 9}, "expected 1 to 10"),
        ({"start": 100}, "expected 0 to 99"),
        ({"eta": 0.5, "sampler": "ddpm"}, "with ddim alone"),
        ({"eta": 1.5}, "expected 0 to 1"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        sample(lambda x, t: x, noise_of(1, 1, 2, 2), linear(100), **({"steps": 2} | options))
