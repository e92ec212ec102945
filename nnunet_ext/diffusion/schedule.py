"""Noise schedules of diffusion: how much of the image is left after each step, and shorter chains of the same steps.

    q(x_t | x_0) = N(sqrt(alphas_cumprod_t) x_0, (1 - alphas_cumprod_t) I),   alphas_cumprod_t = prod_s<=t (1 - beta_s)

after Ho et al. 2020 (https://arxiv.org/abs/2006.11239); the cosine schedule and the shorter chains after Nichol and
Dhariwal 2021 (https://arxiv.org/abs/2102.09672). Everything is computed in double precision, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Spacing = Literal["trailing", "even", "leading"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A chain of T noising steps, 0 to T - 1.

    Attributes:
        betas: (T,) float64, the variance that each step adds; within (0, 1).
        timesteps: (T,) int64, what each step is called in the chain the network was trained with: 0 to T - 1 unless
            this chain was shortened by `respaced`.

    Raises:
        ValueError: betas are no row of numbers within (0, 1), or the timesteps do not ascend.
    """

    betas: np.ndarray
    timesteps: np.ndarray = None  # type: ignore[assignment]  # never None after construction

    def __post_init__(self) -> None:
        betas = np.array(self.betas, dtype=np.float64)
        if betas.ndim != 1 or not betas.size or not ((betas > 0) & (betas < 1)).all():
            span = f" from {betas.min():.3g} to {betas.max():.3g}" if betas.size else ""
            raise ValueError(f"betas of shape {betas.shape}{span} must be one row of numbers between 0 and 1")
        numbers = np.arange(len(betas)) if self.timesteps is None else np.array(self.timesteps, dtype=np.int64)
        if numbers.shape != betas.shape or (np.diff(numbers) <= 0).any():
            raise ValueError(f"{len(betas)} betas need as many ascending timesteps, not {numbers.tolist()}")
        betas.flags.writeable = numbers.flags.writeable = False
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "timesteps", numbers)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """(T,): share of the image's variance that is left after step t."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """(T,): the same before step t; 1 for the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def alpha(self) -> np.ndarray:
        """(T,): sqrt(alphas_cumprod), the factor of the image in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sigma(self) -> np.ndarray:
        """(T,): sqrt(1 - alphas_cumprod), the factor of the noise in x_t."""
        return np.sqrt(1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """(T,): variance of q(x_t-1 | x_t, x_0); 0 for the first step."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """(T,): its logarithm, with the second step's value in place of the first step's minus infinity."""
        variance = self.posterior_variance.copy()
        # A chain of one step has no second; beta is the larger of the two usual choices.
        variance[0] = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(variance)

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """(T,): factor of x_0 in the mean of q(x_t-1 | x_t, x_0)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """(T,): factor of x_t in that mean."""
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - self.betas) / (1.0 - self.alphas_cumprod)

    def marginal(self, t: float) -> tuple[float, float, float]:
        """alpha, sigma and lambda = log(alpha / sigma) of DPM-Solver at step t, which may lie between two steps.

        log alpha is interpolated linearly there, as in the solver's own code (https://arxiv.org/abs/2211.01095).
        """
        log_alpha = float(np.interp(t, np.arange(len(self)), 0.5 * np.log(self.alphas_cumprod)))
        # expm1 keeps the digits of small sigmas.
        log_sigma = 0.5 * math.log(-math.expm1(2.0 * log_alpha))
        return math.exp(log_alpha), math.exp(log_sigma), log_alpha - log_sigma

    def respaced(self, steps: Sequence[int]) -> Schedule:
        """The chain that visits only the given steps of this one, with the same noise at each of them.

        Its betas are 1 - alphas_cumprod[t] / alphas_cumprod[previous t]; its `timesteps` remember how the network knows
        the steps, which are different from their places in the shorter chain.

        Args:
            steps: ascending steps of this chain.

        Raises:
            ValueError: none, not ascending, or outside 0 to T - 1.
        """
        kept: np.ndarray = np.array(steps, dtype=np.int64)
        if not kept.size or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= len(self):
            raise ValueError(f"steps {kept.tolist()} must ascend within 0 to {len(self) - 1}")
        left = self.alphas_cumprod[kept]
        return Schedule(1.0 - left / np.append(1.0, left[:-1]), self.timesteps[kept])


def linear(steps: int = 1000) -> Schedule:
    """The chain of `linear_betas`.

    Raises:
        ValueError: 20 steps or fewer, for which the last betas are 1 and more; take `linear().respaced(...)`.
    """
    return Schedule(linear_betas(steps))


def cosine(steps: int = 1000) -> Schedule:
    """The chain of `cosine_betas`."""
    return Schedule(cosine_betas(steps))


def linear_betas(steps: int) -> np.ndarray:
    """(steps,): Ho et al.'s, from 1e-4 to 2e-2, times 1000 / steps so that shorter chains end as noisy."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4, scale * 2e-2, steps, dtype=np.float64)


def cosine_betas(steps: int) -> np.ndarray:
    """(steps,): Nichol and Dhariwal's, for which alphas_cumprod is a squared cosine; at most 0.999."""

    def left(time: np.ndarray) -> np.ndarray:
        return np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    edges = np.arange(steps + 1) / steps
    return np.minimum(1.0 - left(edges[1:]) / left(edges[:-1]), 0.999)


def choose_steps(total: int, count: int, spacing: Spacing = "trailing") -> list[int]:
    """`count` of the steps 0 to total - 1, ascending.

    Args:
        total: steps of the long chain.
        count: steps of the short one, 1 to total.
        spacing: "trailing" begins at the last step, where training's noise is pure, and ends one stride above clean:
            with few steps each of them has something to remove (https://arxiv.org/abs/2305.08891). "even" includes
            the first and the last step (of the two or more), as the published respacing does. "leading" is the
            published `ddimN`: whole strides from 0, so the largest noise is never visited.

    Raises:
        ValueError: `count` is not within 1 to total, no whole stride gives it ("leading"), or an unknown spacing.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{count} steps of a chain of {total}; expected 1 to {total}")
    if spacing == "trailing" or (spacing == "even" and count == 1):
        return [round(total - k * total / count) - 1 for k in range(count)][::-1]
    if spacing == "even":
        return [round(k * (total - 1) / (count - 1)) for k in range(count)]
    if spacing == "leading":
        for stride in range(1, total + 1):
            if len(chosen := list(range(0, total, stride))) == count:
                return chosen
        raise ValueError(f"no whole stride takes {count} steps of {total}; choose another number or another spacing")
    raise ValueError(f"spacing {spacing!r}; expected trailing, even or leading")


def gather(values: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """`values[t]` in the dtype and on the device of `like`, shaped to multiply it.

    Args:
        values: (T,) float64.
        t: (batch,) int64.
        like: (batch, ...).

    Returns:
        (batch, 1, ...), as many axes as `like`; at least single precision.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    table = torch.as_tensor(values.copy(), dtype=dtype).to(like.device)
    return table[t.to(like.device)].reshape(-1, *[1] * (like.ndim - 1))
