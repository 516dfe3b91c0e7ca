from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from m2chat.evaluation import ranks
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.fid import Moments
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
    assert len(store.joined("metric")) == 1
    assert store.scores("x") == {"score": 1.0}
    store.start()
    assert store.joined("metric") == []


def _evaluate(rank: int, size: int, make: Callable[..., Prediction]) -> tuple[list[tuple[str, float]], float]:
    """What a rank sees of seven samples that a sampler has padded so that every rank has equally many."""
    features = np.random.default_rng(0).normal(size=(7, 4))
    store = EvalStore()
    for index in range(rank, size * -(-7 // size), size):
        sample = index % 7
        store.put("metric", make(f"s{sample}", None), {"score": float(sample), "features": features[sample]})
    joined = [(row.id, row.values["score"]) for row in store.joined("metric")]
    own = [row.values["features"] for row in store.own("metric")]
    moments = Moments.of(np.stack(own) if own else np.zeros((0, 4)))
    total = Moments.unpack(ranks.add_up(moments.pack()), 4)
    assert total.n == 7
    return joined, float(total.covariance.sum())


def test_three_ranks_see_what_one_sees(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    expected = _evaluate(0, 1, make_prediction)
    children = []
    for rank in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store = distributed.FileStore(str(tmp_path / "rendezvous"), 3)
                distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
                joined, covariance = _evaluate(rank, 3, make_prediction)
                same = joined == expected[0] and np.isclose(covariance, expected[1], rtol=1e-12)
                code = 0 if same else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
