from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.evaluation.store import EvalStore
from m2chat.schema import Prediction


class CountingEncoder:
    name = "counting"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def to(self, device: torch.device) -> None: ...

    def release(self) -> None: ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    def encode_image(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.seen += pictures
        return np.array([[picture.mean(), 1.0] for picture in pictures], np.float32)


def test_each_text_and_picture_is_encoded_once() -> None:
    store, encoder = EvalStore(), CountingEncoder()
    rows = store.embed_texts(encoder, ["aa", "b", "aa"])
    assert rows[:, 0].tolist() == [2, 1, 2]
    store.embed_texts(encoder, ["b", "ccc"])
    assert encoder.seen == ["aa", "b", "ccc"]
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert store.embed_images(encoder, [black, white, black])[:, 0].tolist() == [0, 255, 0]
    assert len(encoder.seen) == 5


def test_a_sample_counts_once_and_scores_hold_no_arrays(make_prediction: Callable[..., Prediction]) -> None:
    store = EvalStore()
    for value in (1.0, 1.0):
        store.put("metric", make_prediction("x", None), {"score": value, "array": np.ones(3)})
    assert store.scores("x") == {"score": 1.0}
    store.start()
    assert store.scores("x") == {}
