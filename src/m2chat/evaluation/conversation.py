"""What the judge says of whole conversations: which pictures are right, what was kept from frame to frame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from m2chat.evaluation.judge import MAX_ERROR, judge
from m2chat.metrics.encoders import Picture

_DRAW_WORDS = re.compile(r"\b(draw|paint|picture|show|sketch)\b", re.IGNORECASE)


def asks_openly(request: str) -> bool:
    """Whether a request says that it wants a picture, by a word such as "draw", "paint" or "picture"."""
    return _DRAW_WORDS.search(request) is not None


def seen_in(pictures: Sequence[Picture | None]) -> list[dict[str, str]]:
    """Attributes that the judge reads; none in a picture that is missing or resembles no scene."""
    there = [picture for picture in pictures if picture is not None]
    verdicts = iter(judge(np.stack(there)) if there else [])
    seen = []
    for picture in pictures:
        verdict = None if picture is None else next(verdicts)
        seen.append(verdict.scene.attributes if verdict is not None and verdict.error <= MAX_ERROR else {})
    return seen


def shows(seen: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all that is wanted is there, and no second object that nobody asked for."""
    extra = "shape_2" in seen and "shape_2" not in wanted
    return bool(seen) and not extra and all(seen.get(name) == value for name, value in wanted.items())


def right(pictures: Sequence[Picture | None], wanted: Sequence[Mapping[str, str]]) -> list[bool]:
    """Whether each picture shows what it should; a missing one does not."""
    return [shows(seen, own) for seen, own in zip(seen_in(pictures), wanted, strict=True)]


def kept(frames: Sequence[Picture | None], changing: str) -> list[bool]:
    """Whether the subject stays the same from each frame of a story to the next.

    Args:
        frames: Of one story.
        changing: The attribute that the story is about.

    Returns:
        One truth value a pair of consecutive frames; false where one of them is missing or shows nothing known.
    """
    seen = [{name: value for name, value in own.items() if name != changing} for own in seen_in(frames)]
    return [bool(first) and first == second for first, second in pairwise(seen)]
