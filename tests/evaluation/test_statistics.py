from __future__ import annotations

import math

import numpy as np
import pytest

from m2chat.evaluation.statistics import estimate, mean_interval


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 400)
    item = estimate(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert item.value == pytest.approx(values.mean())
    assert item.n == 400
    assert (item.high - item.low) / 2 == pytest.approx(half, rel=0.15)
    assert item.low < item.value < item.high


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


def test_the_interval_of_a_few_seeds_is_students() -> None:
    item = mean_interval([50.0, 52.0, 54.0])
    assert (item.value, item.n) == (52.0, 3)
    assert item.high - 52.0 == 52.0 - item.low == pytest.approx(4.303 * 2 / math.sqrt(3))
    assert math.isnan(mean_interval([3.0]).low)
