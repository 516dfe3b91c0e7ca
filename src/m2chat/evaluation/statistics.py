"""A number with its uncertainty: 95 % intervals by resampling the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value.

    Args:
        value: Over all values; NaN if it is not defined.
        n: Number of values behind it; None where only the value is known.
        low: Lower end of the 95 % interval; NaN if there is none.
        high: Upper end.
    """

    value: float
    n: int | None
    low: float = float("nan")
    high: float = float("nan")


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())


def estimate(values: ArrayLike, statistic: Callable[[NDArray[Any]], float] = _mean, seed: int = 0) -> Estimate:
    """A statistic of per-sample values with its percentile bootstrap interval.

    Args:
        values: One row a sample, (n, ...); truth values give a proportion.
        statistic: From rows to a number.
        seed: Of the resampling: the same values give the same interval.

    Returns:
        The estimate; NaN without values, and no interval below two.
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
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(value, count, float(low), float(high))


_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 %, two-sided, of 1, 2, ... degrees of freedom."""


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of a few runs, such as seeds, with the 95 % interval of the mean by Student's t.

    Args:
        values: Two to ten, or more; above ten degrees of freedom the normal's 1.96 is used, which is a little short.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, count)
    t = _T_95[count - 2] if count - 2 < len(_T_95) else 1.96
    half = t * float(np.std(values, ddof=1)) / count**0.5
    return Estimate(mean, count, mean - half, mean + half)
