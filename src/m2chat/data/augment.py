"""Chance in how a picture is looked at: which part of it, and from which side."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from m2chat.schema import Sample

_SIDES = re.compile(r"\b(left|right|(anti|counter)?-?clockwise)", re.IGNORECASE)


@dataclass(frozen=True)
class Look:
    """How to look at a picture.

    Args:
        at: Where the square lies, as fractions of what is left over from the top and from the left, in [0, 1); None
            means the middle.
        mirrored: Whether left and right change sides.
    """

    at: tuple[float, float] | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Augmentation:
    """What is left to chance in training; nothing by default.

    Args:
        random_crop: Whether the square is taken from anywhere, and not from the middle.
        flip: Probability with which a picture is mirrored, where nothing tells left from right.
    """

    random_crop: bool = False
    flip: float = 0.0

    def look(self, sample: Sample, lot: str) -> Look:
        """How to look at a sample's target picture.

        Args:
            sample: The conversation.
            lot: All that the choice depends on; empty where nothing is left to chance.
        """
        if not lot or not (self.random_crop or self.flip):
            return Look()
        rng = random.Random(lot)
        at = rng.random(), rng.random()
        mirrored = rng.random() < self.flip and may_be_mirrored(sample)
        return Look(at if self.random_crop else None, mirrored)


def may_be_mirrored(sample: Sample) -> bool:
    """Whether a mirrored picture is as true as the picture itself.

    Not where words tell the sides apart, nor in dialogues, edits and stories, whose pictures go together; nor where
    a crop was noted, since what lies beyond its other side is not known.
    """
    if sample.kind not in ("caption", "instruct") or len(sample.images) != 1 or any(sample.images[0].crop):
        return False
    words = [sample.images[0].caption, *(turn.text for turn in sample.turns)]
    return not any(_SIDES.search(text) for text in words)
