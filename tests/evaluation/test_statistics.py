"""Intervals, p-values, chains and noise floors agree with what they claim."""

import math

import numpy as np
import pytest
from scipy import stats

from slipstream.evaluation.statistics import (
    Estimate,
    bootstrap,
    estimate,
    geometric_mean,
    noise_floor,
)


def test_p_value_is_scipys_one_sided_t_test() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.03, 12)
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert estimate(values).p_above() == pytest.approx(expected)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        low, high = estimate(rng.normal(0.1, 0.05, 8)).interval()
        covered += low < math.exp(0.1) < high
    assert 0.935 < covered / 2000 < 0.965


def test_chain_adds_log_ratios_and_variances() -> None:
    chained = Estimate(0.1, 0.03, 12) + Estimate(0.2, 0.04, 8)
    assert (chained.mean, chained.stderr, chained.num_pairs) == (pytest.approx(0.3), 0.05, 8)


def test_too_few_pairs_say_nothing() -> None:
    assert estimate([0.5]).interval() == (0.0, math.inf)
    assert estimate([0.5]).p_above() == 1.0
    assert estimate([]).num_pairs == 0


def test_noise_floor_bounds_the_mean_of_a_design() -> None:
    rng = np.random.default_rng(3)
    floor = noise_floor(rng.normal(0, 0.02, 400), 8)
    assert floor == pytest.approx(1.645 * 0.02 / math.sqrt(8), rel=0.15)


def test_bootstrap_is_repeatable_and_resamples_rows() -> None:
    rows = np.array([[1.0, 2.0], [1.0, 4.0]])
    first = bootstrap(rows, lambda sums: sums[:, 1] / sums[:, 0])
    assert set(np.round(first, 6)) == {2.0, 3.0, 4.0}
    np.testing.assert_array_equal(first, bootstrap(rows, lambda sums: sums[:, 1] / sums[:, 0]))


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 100.0]) == pytest.approx(10.0)
    assert math.isnan(geometric_mean([]))
