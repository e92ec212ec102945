"""Statistics of methods on the same cases: how good, how sure, and which is better. Arrays in, numbers out.

A unit is what may be resampled: a case, or a patient with all of his cases averaged. Folds do not matter here: in
cross-validation every case is predicted once, by a model that never saw it, so the units are pooled. Intervals over
the means of five folds would be wrong, as the folds share most of their training data. The training's own randomness
(one seed) is in none of these numbers.

Sources: Wiesenfarth et al., Sci Rep 2021; 11:2369 (bootstrap of ranks, Wilcoxon with Holm); "False Promises in Medical
Imaging AI?", arXiv:2505.04720 (probability that the new method is not better).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
SEED = 20240
LEVEL = 0.95
# Resamples drawn at once.
_BLOCK = 1000
# Bytes of resamples kept between calls: as float64 those of 800 units, else as counts those of 6400.
_KEPT = 64_000_000


@dataclass(frozen=True)
class Description:
    """One method on n units; SD and interval are NaN below two units, everything is for none."""

    n: int
    mean: float
    sd: float
    median: float
    q25: float
    q75: float
    low: float
    """Lower end of the 95 % percentile bootstrap interval of the mean."""
    high: float


@dataclass(frozen=True)
class Paired:
    """A new method against another on the same n units."""

    n: int
    difference: float
    """Mean of new minus old."""
    low: float
    """Lower end of the 95 % percentile bootstrap interval of the mean difference."""
    high: float
    p_value: float
    """Wilcoxon signed-rank test, two-sided; zero differences are split between the signs (zsplit)."""
    rank_biserial: float
    """Which way that test points, -1 to 1: (ranks for the new method - ranks against it) / all ranks. Its sign may
    differ from the mean's, which a few large differences can turn."""
    p_not_better: float
    """Posterior probability that the new method's true mean is not better."""
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Ranks:
    """How often each method takes each place when the units are drawn again.

    Attributes:
        share: (methods, places); rows sum to 1. Equal means share their places evenly.
        kendall: mean Kendall tau-b between the order of the resamples and that of the data; 1 is a stable order.
    """

    share: np.ndarray
    kendall: float


def describe(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Description:
    """Mean, spread and the interval of the mean.

    Args:
        values: one finite value per unit.
        resamples: bootstrap samples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: a value is not finite; decide beforehand what a missed structure costs.
    """
    x = _finite(values)
    if len(x) == 0:
        nan = math.nan
        return Description(0, nan, nan, nan, nan, nan, nan, nan)
    median, q25, q75 = np.percentile(x, [50, 25, 75]).tolist()
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    low, high = bootstrap_interval(x, resamples, seed)
    return Description(len(x), float(x.mean()), sd, median, q25, q75, low, high)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; NaN for fewer than two units."""
    x = _finite(values)
    if len(x) < 2:
        return math.nan, math.nan
    means = _resampled_means(x[None], resamples, seed)[0]
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
    return low, high


def paired(
    new: Sequence[float] | np.ndarray,
    old: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool = True,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Paired:
    """Compare two methods unit by unit.

    Args:
        new: one finite value per unit.
        old: values of the other method, in the same order.
        higher_is_better: False for distances.
        resamples, seed: of the interval.

    Raises:
        ValueError: different numbers of units, or a value that is not finite.
    """
    a, b = _finite(new), _finite(old)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values; a paired comparison needs the same units in the same order")
    difference = a - b
    gain = difference if higher_is_better else -difference
    low, high = bootstrap_interval(difference, resamples, seed)
    return Paired(
        n=len(a),
        difference=float(difference.mean()) if len(a) else math.nan,
        low=low,
        high=high,
        p_value=_wilcoxon(difference),
        rank_biserial=rank_biserial(gain),
        p_not_better=probability_not_better(gain),
        wins=int((gain > 0).sum()),
        ties=int((gain == 0).sum()),
        losses=int((gain < 0).sum()),
    )


def probability_not_better(gain: np.ndarray) -> float:
    """P(mean gain <= 0) = F(-sqrt(n) m / s), F Student's t with n - 1 degrees of freedom.

    m and s are mean and standard deviation of the paired gains. The posterior of the mean under a flat prior.
    """
    n = len(gain)
    if n < 2:
        return math.nan
    mean, sd = float(gain.mean()), float(gain.std(ddof=1))
    if sd <= 1e-12 * abs(mean) or sd == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    return float(stats.t.cdf(-math.sqrt(n) * mean / sd, n - 1))


def rank_biserial(gain: np.ndarray) -> float:
    """Effect size of the signed-rank test: (W+ - W-) / (W+ + W-), W the sums of the ranks of |gain| by its sign.

    Positive when the test is for the new method. Zero gains count half for either side, as in zsplit. Source: Kerby,
    "The simple difference formula", Compr Psychol 2014; 3:1. NaN for fewer than two units, as the test.
    """
    if len(gain) < 2:
        return math.nan
    ranks = stats.rankdata(np.abs(gain))
    return float((ranks * np.sign(gain)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for the tests of one table; NaN stays NaN and does not count."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def bootstrap_ranks(
    values: np.ndarray, *, higher_is_better: bool = True, resamples: int = RESAMPLES, seed: int = SEED
) -> Ranks:
    """Rank the methods by their mean in every resample of the units.

    Args:
        values: (methods, units), finite.
        higher_is_better: False for distances.
        resamples, seed: of the bootstrap.
    """
    x = _finite(values)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"values have shape {x.shape}; expected (methods, units) with at least one unit")
    sign = -1.0 if higher_is_better else 1.0
    # (methods, resamples), smaller is better; rounded so that equal methods stay equal.
    means = np.round(sign * _resampled_means(x, resamples, seed), 12)
    count = len(x)
    better = (means[None] < means[:, None]).sum(axis=1)  # how many are ahead of each
    equal = (means[None] == means[:, None]).sum(axis=1)  # itself included
    share = np.zeros((count, count))
    for place in range(count):
        share[:, place] = (((better <= place) & (place < better + equal)) / equal).mean(axis=1)
    observed = sign * x.mean(axis=1)
    taus = [_kendall(observed, column) for column in means.T[: min(resamples, 1000)]]
    return Ranks(share, float(np.mean(taus)) if count > 1 else math.nan)


def by_patient(values: Mapping[str, float], patient_of: Mapping[str, str]) -> dict[str, float]:
    """Mean over each patient's cases; cases with NaN are left out, and patients who have no other."""
    grouped: dict[str, list[float]] = {}
    for case, value in values.items():
        if not math.isnan(value):
            grouped.setdefault(patient_of[case], []).append(value)
    # The mean of one number is that number; most patients have one case, and numpy takes 10 µs to say so.
    return {patient: own[0] if len(own) == 1 else float(np.mean(own)) for patient, own in grouped.items()}


def _resampled_means(x: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means over units drawn with replacement, (methods, resamples); all methods get the same units.

    A product with how often each unit is drawn is far faster than picking the units. All comparisons of a report share
    these counts, and drawing them is nearly all of the work, so they are kept while they are small enough.
    """
    n = x.shape[1]
    weights: Iterable[np.ndarray]
    if 8 * n * resamples <= _KEPT:
        weights = _kept_weights(n, resamples, seed)
    elif n * resamples <= _KEPT:
        weights = (block / n for block in _kept_counts(n, resamples, seed))
    else:
        weights = (block / n for block in _counts(n, resamples, seed))
    return np.concatenate([x @ block.T for block in weights], axis=1)


def _counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n units is drawn: blocks (resamples, n)."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        drawn = generator.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)


@functools.lru_cache(maxsize=2)
def _kept_weights(n: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(block / n for block in _counts(n, resamples, seed))


@functools.lru_cache(maxsize=1)
def _kept_counts(n: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    # One unit among hundreds is drawn a dozen times at most; should it be more often, the type grows.
    return tuple(block.astype(np.min_scalar_type(int(block.max()))) for block in _counts(n, resamples, seed))


def _wilcoxon(difference: np.ndarray) -> float:
    if len(difference) < 2:
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, zero_method="zsplit").pvalue)


def _kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of a few values; 0 where one of them has only ties."""
    i, j = np.triu_indices(len(a), 1)
    s, t = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    ties = math.sqrt(float((s != 0).sum()) * float((t != 0).sum()))
    return float((s * t).sum()) / ties if ties else 0.0


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError("a value is not finite; leave it out or replace it by its penalty before comparing")
    return x
