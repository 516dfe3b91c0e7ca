from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from m2chat.schema import Prediction, Reply, Segment


@pytest.fixture
def make_prediction() -> Callable[..., Prediction]:
    """Builds a prediction whose reply shows one picture."""

    def make(
        id_: str, drawn: NDArray[np.uint8] | None, caption: str = "a red circle", answer: str = "look !", **meta: object
    ) -> Prediction:
        truth = np.full((32, 32, 3), 50, np.uint8)
        segments = (Segment(answer, caption),)
        return Prediction(
            id_, "dialogue", "test", "show me", Reply(segments, (truth,)), Reply(segments, (drawn,)), truth, meta
        )

    return make
