"""From noise to an image: DDPM, DDIM and DPM-Solver++(2M) over any number of steps of the trained chain.

All three see the network as x_0 predictions and differ in how they go on to the next, less noisy step:

* ddpm: a draw from q(x_s | x_t, x_0), the ancestral sampler (https://arxiv.org/abs/2006.11239), posterior variance.
* ddim: the same marginals with less fresh noise: none for eta = 0, the ancestral sampler for eta = 1
  (https://arxiv.org/abs/2010.02502).
* dpm-solver++: the same equation as ddim at eta = 0, solved to second order in log(alpha / sigma) from the last two
  predictions (https://arxiv.org/abs/2211.01095); the first step is of first order, which is ddim's.

The last step of each returns the network's x_0 itself, so one step of ddim is one look at pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from nnunet_ext.diffusion.process import PREDICTIONS, Prediction, to_x0
from nnunet_ext.diffusion.schedule import Schedule, Spacing, choose_steps

Sampler = Literal["ddim", "ddpm", "dpm-solver++"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Model = Callable[[Tensor, Tensor], Tensor]


def sample(
    model: Model,
    x_T: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    sampler: Sampler = "ddim",
    prediction: Prediction = "x0",
    clip: bool = True,
    eta: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    spacing: Spacing = "trailing",
    start: int | None = None,
) -> Tensor:
    """Draw images, calling the network `steps` times.

    Args:
        model: (x_t, t) -> prediction of x_t's shape; t is (batch,) int64, all equal, in the numbering of the chain that
            was trained, on x_t's device.
        x_T: (batch, channels, *grid), floating point: standard normal noise, or x at step `start`.
        schedule: the chain the network was trained with.
        steps: 1 to the length of the chain (to start + 1 with `start`).
        sampler: "ddim", "ddpm" or "dpm-solver++".
        prediction: what the network predicts, "noise", "x0" or "v".
        clip: keep x_0 within [-1, 1] at every step.
        eta: for ddim alone, 0 (no fresh noise) to 1 (ancestral).
        noise: step -> standard normal noise of x_T's shape, for ddpm, and ddim with eta > 0. It is asked once for every
            step of the trained chain that is left, except the last. Default: `torch.randn_like`.
        spacing: which steps are visited, see `choose_steps`.
        start: the step that x_T belongs to; default: the last. An image noised to this step by `q_sample` is refined
            instead of drawn anew.

    Returns:
        x_0, in the shape and dtype of x_T.

    Raises:
        ValueError: an unknown sampler or prediction, steps that do not fit, eta out of range or without use.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}")
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise ValueError(f"eta {eta} with {sampler}; expected 0 to 1, and more than 0 with ddim alone")
    first = len(schedule) - 1 if start is None else start
    if not 0 <= first < len(schedule):
        raise ValueError(f"start {start} is no step of this chain; expected 0 to {len(schedule) - 1}")
    chain = schedule.respaced(choose_steps(first + 1, steps, spacing))
    if sampler == "ddpm":
        eta = 1.0

    def predict_x0(x: Tensor, i: int) -> Tensor:
        t, place = (torch.full((len(x),), int(n), dtype=torch.int64, device=x.device) for n in (chain.timesteps[i], i))
        x0 = to_x0(prediction, chain, model(x, t).to(x.dtype), x, place)
        return x0.clamp(-1.0, 1.0) if clip else x0

    x, before = x_T, None
    for i in range(steps - 1, 0, -1):
        x0 = predict_x0(x, i)
        if sampler == "dpm-solver++":
            x = dpm_solver_step(chain, x, x0, i, i - 1, before)
            before = x0, i
        else:
            fresh = None
            if eta:
                fresh = torch.randn_like(x) if noise is None else noise(int(chain.timesteps[i]))
            x = ddim_step(chain, x, x0, i, eta, fresh)
    return predict_x0(x, 0)


def ddim_step(
    schedule: Schedule, x_t: Tensor, x0: Tensor, t: int, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """x_t-1 of DDIM (equation 12): alpha x_0 + sqrt(sigma^2 - s^2) noise(x_t, x_0) + s fresh noise.

    s is eta times the posterior's standard deviation; with eta = 1 the result is a draw from q(x_t-1 | x_t, x_0).

    Args:
        schedule: the chain that t counts.
        x_t: (batch, channels, *grid).
        x0: same shape.
        t: the step that x_t belongs to.
        eta: 0 to 1.
        noise: fresh, same shape; needed when eta > 0.
    """
    kept = float(schedule.alphas_cumprod_prev[t])
    spread = eta * math.sqrt(schedule.posterior_variance[t])
    direction = (x_t - float(schedule.alpha[t]) * x0) / float(schedule.sigma[t])
    x = math.sqrt(kept) * x0 + math.sqrt(max(1.0 - kept - spread**2, 0.0)) * direction
    return x if noise is None else x + spread * noise


def dpm_solver_step(
    schedule: Schedule, x_s: Tensor, x0: Tensor, s: float, t: float, before: tuple[Tensor, float] | None = None
) -> Tensor:
    """x_t from x_s by DPM-Solver++, of second order when an earlier prediction is known (Algorithm 2 of the paper).

        h = lambda_t - lambda_s,   x_t = sigma_t / sigma_s x_s - alpha_t (exp(-h) - 1) D
        D = x_0(s) + h / (2 (lambda_s - lambda_r)) (x_0(s) - x_0(r)),   of first order: D = x_0(s)

    Args:
        schedule: the chain that s, t and r count; they may lie between two steps.
        x_s: (batch, channels, *grid).
        x0: x_0 predicted at s, same shape.
        s: from here.
        t: to there; t < s.
        before: x_0 predicted at the step r before s (r > s), and r.
    """
    _, sigma_s, lambda_s = schedule.marginal(s)
    alpha_t, sigma_t, lambda_t = schedule.marginal(t)
    h = lambda_t - lambda_s
    direction = x0
    if before is not None:
        earlier, r = before
        direction = x0 + h / (2.0 * (lambda_s - schedule.marginal(r)[2])) * (x0 - earlier)
    return (sigma_t / sigma_s) * x_s - alpha_t * math.expm1(-h) * direction
