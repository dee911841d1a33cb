"""The statistics that decide: paired t-tests on log ratios, and the bootstrap by document."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes half a second to load


@dataclass(frozen=True)
class Estimate:
    """A mean log ratio of speeds with its standard error.

    Log ratios add up along a chain of comparisons, and their variances too.
    """

    mean: float
    stderr: float
    num_pairs: int

    @property
    def deviation(self) -> float:
        """The standard deviation of a single pair."""
        return self.stderr * math.sqrt(self.num_pairs)

    @property
    def ratio(self) -> float:
        """The speed ratio."""
        return math.exp(self.mean)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval of the speed ratio."""
        if self.num_pairs < 2:
            return (0.0, math.inf)
        reach = float(stdtrit(self.num_pairs - 1, 0.5 + level / 2)) * self.stderr
        return math.exp(self.mean - reach), math.exp(self.mean + reach)

    def p_above(self, threshold: float = 0.0) -> float:
        """Return the one-sided p-value against "the mean is not above `threshold`"."""
        if self.num_pairs < 2:
            return 1.0
        if self.stderr == 0:
            return 0.0 if self.mean > threshold else 1.0
        t = (self.mean - threshold) / self.stderr
        return float(stdtr(self.num_pairs - 1, -t))

    def at(self, num_pairs: int) -> "Estimate":
        """Return what this would be if more pairs went on the same way."""
        stderr = self.stderr * math.sqrt(self.num_pairs / num_pairs)
        return Estimate(self.mean, stderr, num_pairs)

    def __add__(self, other: "Estimate") -> "Estimate":
        """Chain two independent comparisons: A over B, and B over C, give A over C."""
        return Estimate(
            self.mean + other.mean,
            math.hypot(self.stderr, other.stderr),
            min(self.num_pairs, other.num_pairs),
        )


def estimate(log_ratios: Sequence[float]) -> Estimate:
    """Return the mean of paired log ratios and its standard error."""
    values = np.asarray(log_ratios, float)
    count = len(values)
    stderr = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(float(values.mean()) if count else 0.0, stderr, count)


def geometric_mean(values: Sequence[float]) -> float:
    """Return exp of the mean logarithm; NaN for no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def bootstrap(
    rows: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int = 0,
    num_samples: int = 4000,
) -> NDArray[np.float64]:
    """Resample `rows` [documents, columns] with replacement; return `statistic` of each sample.

    `statistic` gets the column sums of the samples, [num_samples, columns].
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(rows), (num_samples, len(rows)))
    return statistic(rows[picks].sum(axis=1))


def noise_floor(log_ratios: Sequence[float], num_pairs: int, *, seed: int = 0) -> float:
    """Return the 95th percentile of the mean of `num_pairs` pairs when nothing differs.

    Args:
        log_ratios: pairs of an engine against itself (an A/A test); their mean is taken as zero,
            because the order within each pair is balanced.
        num_pairs: pairs of the design that the floor is for.
    """
    values = np.asarray(log_ratios, float)
    values = values - values.mean()
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (4000, num_pairs)).mean(axis=1)
    return float(np.quantile(means, 0.95))


def detectable_gain(deviation: float, num_pairs: int, level: float, power: float = 0.8) -> float:
    """Return the least log ratio that a one-sided paired t-test finds with `power`.

    Args:
        deviation: standard deviation of a single pair's log ratio.
        level: the test's p-value.
    """
    reach = stdtrit(num_pairs - 1, 1 - level) + stdtrit(num_pairs - 1, power)
    return float(reach) * deviation / math.sqrt(num_pairs)
