from __future__ import annotations

import numpy as np
import pytest

from m2chat.metrics.tasks import StoryConsistencyMetric, direction_similarity

X, Y, Z = np.eye(3)


def test_consistency_is_that_of_neighbours() -> None:
    metric = StoryConsistencyMetric()
    metric.update([np.stack([X, X, Y, (X + Y) / np.sqrt(2)]), np.stack([X])], ["story", "one picture"])
    scores = metric.scores(metric.gather())
    assert scores == pytest.approx([100 * np.mean([1.0, 0.0, np.sqrt(0.5)])])
    for first, second, cosine in ((X, X, 1.0), (X, Y, 0.0), (Y, (X + Y) / np.sqrt(2), np.sqrt(0.5))):
        pair = StoryConsistencyMetric()
        pair.update([np.stack([first, second])], ["pair"])
        assert pair.scores(pair.gather()) == pytest.approx([100 * cosine])


def test_a_change_in_the_direction_of_the_words() -> None:
    def one(image: np.ndarray, text: np.ndarray = Y) -> float:
        return float(direction_similarity(X[None], image[None], X[None], text[None])[0])

    assert one(Y) == pytest.approx(1.0)
    assert one(Z) == pytest.approx(0.5)  # (Z - X).(Y - X) / 2
    assert one(X) == 0.0  # it stayed as it was
    assert np.isnan(one(Y, X))  # nothing was to change
    assert np.isnan(one(np.full(3, np.nan)))
