"""Numbers with their uncertainty: 95 % intervals over samples, over seeds, and of paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
"""Bootstrap draws per interval."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value.

    Args:
        value: Value over all samples or seeds; NaN if it is not defined.
        n: Number of samples or seeds; None where only the value is known.
        low: Lower end of the 95 % interval; NaN if there is none.
        high: Upper end.
    """

    value: float
    n: int | None
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Difference:
    """One metric in two evaluations, over the samples that both have.

    Args:
        metric: Name of the metric.
        first: Its value in the first evaluation.
        second: Its value in the second.
        low: Lower end of the 95 % interval of ``first - second``.
        high: Upper end.
        p: Two-sided p-value, 0-1, of no difference.
        n: Number of samples.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())


def estimate(values: ArrayLike, statistic: Callable[[NDArray[Any]], float] = _mean, seed: int = 0) -> Estimate:
    """A statistic of per-sample values with its percentile bootstrap interval.

    Args:
        values: Values of the samples, (n, ...); truth values give a proportion.
        statistic: Function of such an array to a number.
        seed: Seed of the resampling: the same values give the same interval.

    Returns:
        The estimate; NaN without values, and no interval for fewer than two.
    """
    rows = np.asarray(values)
    count = len(rows)
    if count == 0:
        return Estimate(float("nan"), 0)
    value = statistic(rows)
    if count == 1:
        return Estimate(value, 1)
    rng = np.random.default_rng(seed)
    draws = [statistic(rows[rng.integers(count, size=count)]) for _ in range(RESAMPLES)]
    low, high = _interval(np.array(draws))
    return Estimate(value, count, low, high)


def _interval(draws: NDArray[Any]) -> tuple[float, float]:
    """The 95 % interval of the draws for which the statistic is defined; NaN if it is for none."""
    defined = draws[~np.isnan(draws)]
    low, high = np.quantile(defined, (0.025, 0.975)) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 %, two-sided, of 1, 2, ... degrees of freedom, rounded: exact values would change the half-widths
of docs/results/ by 0.01."""


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean over a few runs, such as seeds, with its 95 % interval by Student's t; no interval for a single run.

    Args:
        values: One to ten values, or more; above ten the normal's 1.96 is used, which is a little short.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, count)
    t = _T_95[count - 2] if count - 2 < len(_T_95) else 1.96
    half = t * float(np.std(values, ddof=1)) / count**0.5
    return Estimate(mean, count, mean - half, mean + half)


def difference(
    metric: str,
    first: NDArray[Any],
    second: NDArray[Any],
    statistic: Callable[[NDArray[Any]], float] = _mean,
    seed: int = 0,
) -> Difference:
    """The paired bootstrap: each draw resamples both evaluations by the same samples.

    Args:
        metric: Name of the metric.
        first: Values of the samples in the first evaluation, (n, ...).
        second: Values of the same samples, in the same order, in the second.
        statistic: Function of such an array to the metric's value.
        seed: Seed of the resampling.
    """
    n = len(first)
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(n, size=n) for _ in range(RESAMPLES)]
    draws = np.array([statistic(first[rows]) - statistic(second[rows]) for rows in chosen])
    low, high = _interval(draws)
    # Both tails with one draw added, so that no finite number of draws gives p = 0.
    p = min(1.0, 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (RESAMPLES + 1))
    return Difference(metric, statistic(first), statistic(second), low, high, float(p), n)
