"""Statistics against scipy, textbook numbers and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.evaluation import compare
from nnunet_ext.evaluation.compare import (
    bootstrap_interval,
    bootstrap_ranks,
    by_patient,
    describe,
    holm,
    paired,
    probability_not_better,
)

RNG = np.random.default_rng(7)
OLD = RNG.normal(0.80, 0.06, 60)
NEW = OLD + RNG.normal(0.02, 0.03, 60)


def test_description_is_numpys_and_its_interval_scipys():
    found = describe(NEW)
    assert (found.n, found.mean, found.sd) == (60, pytest.approx(NEW.mean()), pytest.approx(NEW.std(ddof=1)))
    assert [found.q25, found.median, found.q75] == pytest.approx(np.percentile(NEW, [25, 50, 75]).tolist())
    expected = stats.bootstrap((NEW,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert [found.low, found.high] == pytest.approx(list(expected), abs=1.2e-3)


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(np.random.default_rng(seed).normal(5, 2, 60), resamples=400)
        covered += low <= 5 <= high
    assert 0.90 < covered / 300 < 0.98


def test_the_same_seed_gives_the_same_interval():
    assert bootstrap_interval(NEW) == bootstrap_interval(NEW.tolist())
    assert bootstrap_interval(NEW) != bootstrap_interval(NEW, seed=1)


def test_pair_is_scipys_and_turns_with_the_direction():
    found = paired(NEW, OLD)
    assert found.difference == pytest.approx((NEW - OLD).mean()) and found.low < found.difference < found.high
    assert found.p_value == pytest.approx(stats.wilcoxon(NEW - OLD, zero_method="zsplit").pvalue)
    # The posterior probability equals the one-sided paired t-test's p-value.
    assert found.p_not_better == pytest.approx(stats.ttest_rel(NEW, OLD, alternative="greater").pvalue)
    assert (found.wins, found.ties, found.losses) == ((NEW > OLD).sum(), 0, (NEW < OLD).sum())
    distance = paired(NEW, OLD, higher_is_better=False)
    assert distance.p_not_better == pytest.approx(1 - found.p_not_better)
    assert (distance.wins, distance.difference) == (found.losses, found.difference)


def test_formula_of_the_paper():
    # P = t_{n-1}(sqrt(n) (mean_B - mean_A) / sqrt(s_A^2 + s_B^2 - 2 s_A s_B r_AB)), A the new method
    n, r = len(NEW), np.corrcoef(NEW, OLD)[0, 1]
    spread = math.sqrt(NEW.var(ddof=1) + OLD.var(ddof=1) - 2 * NEW.std(ddof=1) * OLD.std(ddof=1) * r)
    expected = stats.t.cdf(math.sqrt(n) * (OLD.mean() - NEW.mean()) / spread, n - 1)
    assert probability_not_better(NEW - OLD) == pytest.approx(expected)


def test_equal_methods_are_never_told_apart():
    found = paired(OLD, OLD)
    assert (found.p_value, found.p_not_better, found.ties) == (1.0, 0.5, 60)
    assert paired(OLD + 0.1, OLD).p_not_better == pytest.approx(0, abs=1e-9)


def test_too_few_units_are_undefined_not_invented():
    one = describe([0.5])
    assert (one.n, one.mean) == (1, 0.5) and math.isnan(one.sd) and math.isnan(one.low)
    assert describe([]).n == 0 and math.isnan(describe([]).mean)
    assert math.isnan(paired([0.5], [0.4]).p_value) and math.isnan(paired([], []).difference)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.6]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert holm([]) == []


def test_ranks():
    values = np.stack([OLD, NEW, OLD - 0.2])
    ranks = bootstrap_ranks(values)
    assert ranks.share.sum(axis=0) == pytest.approx([1, 1, 1]) and ranks.share.sum(axis=1) == pytest.approx([1, 1, 1])
    assert ranks.share[1, 0] > 0.99 and ranks.share[2, 2] == 1 and ranks.kendall > 0.99
    assert bootstrap_ranks(values, higher_is_better=False).share[2, 0] == 1
    # Equal methods share their places.
    assert bootstrap_ranks(np.stack([OLD, OLD])).share == pytest.approx(np.full((2, 2), 0.5))


def test_patients_are_averaged_and_undefined_cases_left_out():
    values = {"a_1": 1.0, "a_2": 3.0, "b_1": 5.0, "b_2": math.nan, "c_1": math.nan}
    assert by_patient(values, {case: case[0] for case in values}) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize("bad", [[1.0, math.nan], [1.0, math.inf]])
def test_missed_structures_must_be_decided_on_first(bad):
    with pytest.raises(ValueError, match="not finite"):
        describe(bad)
    with pytest.raises(ValueError, match="not finite"):
        paired(bad, [1.0, 2.0])


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match="same units"):
        paired([1.0], [1.0, 2.0])


def test_the_test_says_for_whom_it_is_even_where_the_mean_points_the_other_way():
    # 20 large wins, 80 small losses: the mean is for the new method, the signed ranks are against it.
    gain = np.concatenate([np.full(20, 0.26), np.full(80, -0.04)]) + np.linspace(0, 1e-4, 100)
    found = paired(gain, np.zeros(100))
    assert found.difference > 0 and found.p_value < 0.05 and (found.wins, found.losses) == (20, 80)
    plus = stats.wilcoxon(gain, zero_method="zsplit", alternative="greater").statistic  # the sum of the positive ranks
    assert found.rank_biserial == pytest.approx(2 * plus / 5050 - 1) and found.rank_biserial < 0
    assert paired(-gain, np.zeros(100), higher_is_better=False).rank_biserial == found.rank_biserial
    assert paired(OLD, OLD).rank_biserial == 0 and paired(OLD + 0.1, OLD).rank_biserial == 1


@pytest.mark.parametrize("kept", [10**9, 60 * 2500, 0], ids=["weights kept", "counts kept", "nothing kept"])
def test_kept_resamples_give_the_numbers_of_fresh_ones(monkeypatch, kept):
    monkeypatch.setattr(compare, "_KEPT", kept)
    values = np.stack([OLD, NEW])
    generator = np.random.default_rng(3)
    drawn = np.concatenate([generator.integers(0, 60, (count, 60)) for count in (1000, 1000, 500)])
    weights = np.stack([np.bincount(row, minlength=60) for row in drawn]) / 60
    plain = np.concatenate([values @ weights[start : start + 1000].T for start in (0, 1000, 2000)], axis=1)
    for _ in range(2):
        np.testing.assert_array_equal(compare._resampled_means(values, 2500, 3), plain)
    np.testing.assert_allclose(plain, values[:, drawn].mean(axis=2), rtol=1e-12)
