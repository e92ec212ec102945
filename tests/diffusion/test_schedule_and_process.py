"""Schedules and the process against the published code's numbers, and what must hold between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import make_input

from nnunet_ext.diffusion.process import PREDICTIONS, q_posterior, q_sample, target, to_noise, to_x0
from nnunet_ext.diffusion.schedule import Schedule, choose_steps, cosine, cosine_betas, linear, linear_betas

GOLDEN = Path(__file__).parent.parent / "golden"

golden = np.load(GOLDEN / "diffusion.npz")
X0 = torch.from_numpy((make_input("x0", (3, 1, 8, 8)) > 0).astype(np.float32))
NOISE = torch.from_numpy(make_input("noise", (3, 1, 8, 8)))
T = torch.tensor([0, 250, 999])


def assert_close(ours, name: str, tolerance: float) -> None:
    """To 1e-10 where the published code computes in double precision, to 1e-5 where it gives single."""
    difference = np.abs(np.asarray(ours) - golden[name]).max()
    assert difference <= tolerance, f"{name} differs by {difference}"


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_golden_betas(steps):
    assert_close(linear_betas(steps), f"betas_linear_{steps}", 1e-10)
    assert_close(cosine_betas(steps), f"betas_cosine_{steps}", 1e-10)


@pytest.mark.parametrize(
    "name",
    ["alphas_cumprod", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"],
)
def test_golden_derived(name):
    assert_close(getattr(linear(1000), name), f"{name}_linear_1000", 1e-10)


def test_golden_shorter_chain():
    steps = choose_steps(1000, 10, "even")
    assert steps == golden["space_timesteps_1000_10"].tolist()
    assert choose_steps(1000, 50, "leading") == golden["space_timesteps_1000_ddim50"].tolist()
    chain = linear(1000).respaced(steps)
    assert_close(chain.betas, "respaced_betas_linear_1000_to_10", 1e-10)
    assert chain.timesteps.tolist() == steps
    np.testing.assert_allclose(chain.alphas_cumprod, linear(1000).alphas_cumprod[steps], rtol=1e-12)


def test_shortened_twice_remembers_the_trained_chain():
    chain = linear(1000).respaced([10, 500, 900, 999]).respaced([1, 3])
    assert chain.timesteps.tolist() == [500, 999]
    np.testing.assert_allclose(chain.alphas_cumprod, linear(1000).alphas_cumprod[[500, 999]], rtol=1e-12)


def test_golden_marginals_of_dpm_solver():
    # Its clock runs from 1/1000 at the first step to 1 at the last, and it computes in single precision, where small
    # sigmas and lambda lose digits.
    ours = np.array([linear(1000).marginal(1000 * float(t) - 1) for t in golden["ns_t"]]).T
    for values, name, tolerance in zip(ours, ("ns_alpha", "ns_sigma", "ns_lambda"), (1e-5, 1e-5, 2e-4), strict=True):
        assert_close(values, name, tolerance)


def test_golden_process():
    assert_close(q_sample(linear(), X0, T, NOISE), "q_sample_linear", 1e-5)
    assert_close(q_sample(cosine(), X0, T, NOISE), "q_sample_cosine", 1e-5)
    x_t = NOISE
    mean, variance, log_variance = q_posterior(linear(), X0, x_t, T)
    assert_close(mean, "q_posterior_mean", 1e-5)
    assert_close(log_variance.flatten(), "q_posterior_log_variance", 1e-5)
    assert variance[0] == 0
    torch.testing.assert_close(variance[1:].log(), log_variance[1:])


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_golden_step_of_a_noise_predicting_network(step):
    schedule, t = linear(), torch.tensor([step])
    image, x_t = (torch.from_numpy(make_input(name, (1, 1, 8, 8))) for name in ("img", "xt"))
    noise = 0.5 * x_t + 0.25 * image + 0.1 * np.sin(step / 100)
    x0 = to_x0("noise", schedule, noise, x_t, t).clamp(-1, 1)
    assert_close(x0, f"pmv_pred_xstart_t{step}", 1e-5)
    assert_close(q_posterior(schedule, x0, x_t, t)[0], f"pmv_fixedlarge_mean_t{step}", 1e-5)
    # The two variances between which the published network interpolates.
    large = np.log(np.append(schedule.posterior_variance[1], schedule.betas[1:]))[step]
    assert_close(large, f"pmv_fixedlarge_logvar_t{step}", 1e-5)
    share = (0.3 * torch.tanh(x_t) + 1) / 2
    between = share * np.log(schedule.betas[step]) + (1 - share) * schedule.posterior_log_variance_clipped[step]
    assert_close(between, f"pmv_learnedrange_logvar_t{step}", 1e-5)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("grid", [(5,), (4, 6), (2, 3, 4)], ids=str)
def test_a_right_prediction_gives_back_image_and_noise(kind, grid):
    schedule = linear()
    x0, noise = (torch.randn(3, 2, *grid, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    x_t = q_sample(schedule, x0, T, noise)
    prediction = target(kind, schedule, x0, noise, T)
    torch.testing.assert_close(to_x0(kind, schedule, prediction, x_t, T), x0)
    torch.testing.assert_close(to_noise(kind, schedule, prediction, x_t, T), noise)


def test_half_precision_is_noised_in_single():
    assert q_sample(linear(), X0.half(), T, NOISE.half()).dtype == torch.float32


@pytest.mark.parametrize("spacing", ["trailing", "even"])
def test_every_number_of_steps(spacing):
    for total in (1, 2, 7, 100, 1000):
        for count in range(1, total + 1):
            steps = choose_steps(total, count, spacing)
            assert len(set(steps)) == count and steps == sorted(steps) and steps[0] >= 0 and steps[-1] == total - 1
    assert choose_steps(1000, 2, "trailing") == [499, 999]
    assert choose_steps(1000, 4, "trailing") == [249, 499, 749, 999]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: linear(10), "between 0 and 1"),
        (lambda: Schedule(np.zeros(0)), "between 0 and 1"),
        (lambda: Schedule(np.full(2, 0.1), np.array([3, 3])), "ascending"),
        (lambda: linear().respaced([5, 1000]), "within 0 to 999"),
        (lambda: linear().respaced([5, 5]), "ascend"),
        (lambda: choose_steps(10, 11), "11 steps of a chain of 10"),
        (lambda: choose_steps(10, 0), "expected 1 to 10"),
        (lambda: choose_steps(10, 9, "leading"), "no whole stride"),
        (lambda: choose_steps(10, 9, "backwards"), "expected trailing"),
        (lambda: target("eps", linear(), X0, NOISE, T), "expected one of noise, x0, v"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
