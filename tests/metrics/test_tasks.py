from __future__ import annotations

import numpy as np
import pytest

from m2chat.metrics.tasks import consistency, direction_similarity

X, Y, Z = np.eye(3)


def test_consistency_is_that_of_neighbours() -> None:
    assert consistency(np.stack([X, X, Y, (X + Y) / np.sqrt(2)])) == pytest.approx([1.0, 0.0, np.sqrt(0.5)])
    assert consistency(np.stack([X])).size == 0


def test_a_change_in_the_direction_of_the_words() -> None:
    def one(image: np.ndarray, text: np.ndarray = Y) -> float:
        return float(direction_similarity(X[None], image[None], X[None], text[None])[0])

    assert one(Y) == pytest.approx(1.0)
    assert one(Z) == pytest.approx(0.5)  # (Z - X).(Y - X) / 2
    assert one(X) == 0.0  # it stayed as it was
    assert np.isnan(one(Y, X))  # nothing was to change
    assert np.isnan(one(np.full(3, np.nan)))
