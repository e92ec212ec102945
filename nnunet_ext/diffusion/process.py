"""The forward process, its posterior, and the three things a network may predict.

    x_t = alpha_t x_0 + sigma_t noise,     v = alpha_t noise - sigma_t x_0

A network that predicts one of noise, x_0 and v (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512) predicts the
others too, because x_t is known.

Everywhere x_0, x_t and noise are (batch, channels, *grid) and t is (batch,), int64, counting the steps of `schedule`
from 0. For training and for networks that is the whole chain; samplers work on a shorter one (`Schedule.respaced`).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from nnunet_ext.diffusion.schedule import Schedule, gather

Prediction = Literal["noise", "x0", "v"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t, the noised image."""
    return gather(schedule.alpha, t, x0) * x0 + gather(schedule.sigma, t, x0) * noise


def q_posterior(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and logarithm of the variance of q(x_t-1 | x_t, x_0).

    Returns:
        The mean has the shape of x_t, the others (batch, 1, ...). The variance at t = 0 is 0; its logarithm is that of
        t = 1 there, which samplers never use.
    """
    mean = gather(schedule.posterior_mean_coef1, t, x_t) * x0 + gather(schedule.posterior_mean_coef2, t, x_t) * x_t
    return (
        mean,
        gather(schedule.posterior_variance, t, x_t),
        gather(schedule.posterior_log_variance_clipped, t, x_t),
    )


def target(kind: Prediction, schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a network that predicts `kind` should answer."""
    if kind == "noise":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        return gather(schedule.alpha, t, x0) * noise - gather(schedule.sigma, t, x0) * x0
    raise _unknown(kind)


def to_x0(kind: Prediction, schedule: Schedule, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x_0 according to a prediction.

    From noise it is (x_t - sigma_t noise) / alpha_t: at the last steps alpha_t is tiny, so errors grow and the result
    must be clipped.
    """
    if kind == "x0":
        return prediction
    if kind == "noise":
        return (x_t - gather(schedule.sigma, t, x_t) * prediction) / gather(schedule.alpha, t, x_t)
    if kind == "v":
        return gather(schedule.alpha, t, x_t) * x_t - gather(schedule.sigma, t, x_t) * prediction
    raise _unknown(kind)


def to_noise(kind: Prediction, schedule: Schedule, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The noise in x_t according to a prediction."""
    if kind == "noise":
        return prediction
    if kind == "x0":
        return (x_t - gather(schedule.alpha, t, x_t) * prediction) / gather(schedule.sigma, t, x_t)
    if kind == "v":
        return gather(schedule.sigma, t, x_t) * x_t + gather(schedule.alpha, t, x_t) * prediction
    raise _unknown(kind)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"prediction {kind!r}; expected one of {', '.join(PREDICTIONS)}")
