from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from m2chat.data.images import save_png
from m2chat.data.peek import UNKNOWN_SIZE, is_picture, peek, size_of
from m2chat.data.sources import BadSample, sample_of, to_members
from m2chat.schema import Sample


def test_everything_but_the_pixels_is_there(make_dialogue: Callable[[int], Sample]) -> None:
    members = to_members(make_dialogue(0))
    seen, whole = peek(members, "key", "own"), sample_of(members, "key", "own")
    assert (seen.id, seen.turns, seen.meta) == (whole.id, whole.turns, whole.meta)
    assert [image.caption for image in seen.images] == [image.caption for image in whole.images]
    assert [image.original_size for image in seen.images] == [(80, 60), (8, 8)]
    pair = peek({"jpg": b"anything", "txt": b"words"}, "key", "own")
    assert pair.images[0].original_size == UNKNOWN_SIZE
    with pytest.raises(BadSample, match="no picture"):
        peek({"txt": b"words"}, "key", "own")


def test_sizes_come_from_the_head_of_the_file() -> None:
    data = save_png(np.zeros((5, 9, 3), np.uint8))
    assert size_of(data) == (5, 9) == size_of(data[:60])
    assert size_of(b"") is None and size_of(b"<html>") is None


def test_what_a_picture_is() -> None:
    assert [is_picture(name) for name in ("jpg", "img0.png", "json", "txt", "png.json")] == [True, True, *[False] * 3]
