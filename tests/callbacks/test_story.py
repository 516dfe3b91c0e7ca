from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m2chat.callbacks.story import StoryConsistency
from m2chat.evaluation.store import EvalStore
from m2chat.schema import Prediction, Reply, Segment

RED, GREEN = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
RED[..., 0] = GREEN[..., 1] = 255


class Colours:
    """Sees the mean colour; a text is red."""

    name = "colours"

    def to(self, device: torch.device) -> None: ...

    def release(self) -> None: ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1.0, 0.0, 0.0]] * len(texts), np.float32)

    def encode_image(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.stack([picture.mean((0, 1)) / 255 for picture in pictures]).astype(np.float32)


def part(story: str, turn: int, drawn: NDArray[np.uint8] | None) -> Prediction:
    segments = (Segment("and then", "a red picture"),)
    return Prediction(
        f"{story}#{turn}", "story", "x", "go on", Reply(segments, (RED,)), Reply(segments, (drawn,))
    )  # fmt: skip


def test_neighbours_only_and_every_frame_in_its_place() -> None:
    metric, store = StoryConsistency(Colours()), EvalStore()
    stories = {"a": [RED, RED, GREEN, GREEN], "b": [RED, None, RED, RED], "c": [None, None, None, None]}
    parts = [part(name, turn, drawn) for name, own in stories.items() for turn, drawn in enumerate(own, 1)]
    metric.update(store, parts)
    found = metric.results(full=True)
    # a: alike, other, alike; b: only its last two are neighbours; c has none.
    assert found["story_consistency"].value == pytest.approx((100 * 2 / 3 + 100) / 2)
    assert found["story_consistency_oracle"].value == pytest.approx(100.0)
    places = [(found[f"clip_score_frame_{k}"].value, found[f"clip_score_frame_{k}"].n) for k in (1, 2, 3, 4)]
    assert places == [(100.0, 2), (100.0, 1), (50.0, 2), (50.0, 2)]


def test_frames_that_were_left_out_of_the_samples_make_no_pair() -> None:
    metric, store = StoryConsistency(Colours()), EvalStore()
    parts = [part("a", turn, drawn) for turn, drawn in ((1, RED), (2, RED), (4, GREEN))]
    metric.update(store, parts)
    assert metric.results(full=True)["story_consistency"].value == pytest.approx(100.0)
