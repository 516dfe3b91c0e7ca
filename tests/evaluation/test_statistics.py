from __future__ import annotations

import math

import numpy as np
import pytest

from m2chat.evaluation.statistics import estimate


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 400)
    found = estimate(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 400
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    assert found.low < found.value < found.high


def test_proportions_and_repeatability() -> None:
    values = [True, True, False, True]
    assert estimate(values).value == 0.75
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=0).low <= 0.75 <= estimate(values, seed=0).high


def test_few_values() -> None:
    assert math.isnan(estimate([]).value)
    assert estimate([]).n == 0
    one = estimate([3.0])
    assert (one.value, one.n) == (3.0, 1)
    assert math.isnan(one.low)


def test_another_statistic_sees_whole_rows() -> None:
    rows = [[1, 2], [3, 4]]
    assert estimate(rows, lambda part: float(part[:, 0].sum() / part[:, 1].sum())).value == pytest.approx(4 / 6)
