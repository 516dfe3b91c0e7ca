from __future__ import annotations

import numpy as np
import pytest

from m2chat.worlds.shapes.judge import asks_openly, kept, right, seen_in, shows
from m2chat.worlds.shapes.scenes import Scene, Shape, render

RED = Scene(Shape("circle", "red"), "blue", None, "large", "left")
FRAMES = [RED.with_attribute("position", place) for place in ("left", "top", "right")]
NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("request_", "openly"),
    [
        ("please paint a ring", True), ("can you show me a ring ?", True), ("make a picture of a ring", True),
        ("I dream of a ball like the sea", False), ("painted or not", False),
    ],
)  # fmt: skip
def test_asking_openly(request_: str, openly: bool) -> None:
    assert asks_openly(request_) == openly


def test_a_missing_or_unknown_picture_shows_nothing() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert seen_in([None, grey, render(RED, NOISE)]) == [{}, {}, RED.attributes] and seen_in([]) == []
    assert right([None, grey, render(RED, NOISE)], [{}, {}, {}]) == [False, False, True]


def test_right_means_all_that_is_wanted_and_no_second_object() -> None:
    pair = Scene(Shape("circle", "red"), "blue", Shape("ring", "green"))
    assert shows(RED.attributes, {"colour": "red", "size": "large"}) and not shows(RED.attributes, {"colour": "green"})
    assert not shows(pair.attributes, {"colour": "red"}) and shows(
        pair.attributes, {"colour": "red", "shape_2": "ring"}
    )


def test_the_subject_is_kept_from_frame_to_frame() -> None:
    pictures = [render(scene, NOISE) for scene in FRAMES]
    assert kept(pictures, "position") == [True, True]
    assert kept(pictures, "colour") == [False, False]
    assert kept([pictures[0], None, pictures[2]], "position") == [False, False]
    other = render(FRAMES[2].with_attribute("colour", "green"), NOISE)
    assert kept([*pictures[:2], other], "position") == [True, False]
