from __future__ import annotations

import math

import numpy as np
import pytest

from m2chat.metrics.clip_score import clip_score, cosines, mean_score


def test_cosines_are_taken_row_by_row() -> None:
    first = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    second = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    assert cosines(first, second) == pytest.approx([1.0, math.sqrt(0.5), -1.0])


def test_a_vector_that_is_not_finite_gives_nan_and_no_warning() -> None:
    values = cosines(np.array([[np.nan, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert np.isnan(values).all()


def test_only_the_mean_is_clamped() -> None:
    assert clip_score([0.5, -0.3]) == pytest.approx(10.0)
    assert clip_score([0.1, -0.3]) == 0.0
    assert mean_score([0.1, -0.3]) == pytest.approx(-10.0)


def test_no_pairs_give_nan() -> None:
    assert math.isnan(clip_score([]))
