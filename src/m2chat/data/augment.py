"""Random augmentation of target pictures: crop and flip."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from m2chat.schema import Sample

_SIDES = re.compile(r"\b(left|right|(anti|counter)?-?clockwise)", re.IGNORECASE)


@dataclass(frozen=True)
class CropFlip:
    """Crop and flip of a picture.

    Args:
        at: Position of the square, as fractions of the spare height and width, in [0, 1); None means the middle.
        mirrored: Whether left and right change sides.
    """

    at: tuple[float, float] | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation in training; none by default.

    Args:
        random_crop: Whether the square is taken from a random position, and not from the middle.
        flip: Probability with which a picture is mirrored, unless the sample's text names sides.
    """

    random_crop: bool = False
    flip: float = 0.0

    def draw(self, sample: Sample, seed: str) -> CropFlip:
        """Crop and flip of a sample's target picture.

        Args:
            sample: Conversation.
            seed: Seed of the random draw; empty draws nothing.
        """
        if not seed or not (self.random_crop or self.flip):
            return CropFlip()
        rng = random.Random(seed)
        at = rng.random(), rng.random()
        mirrored = rng.random() < self.flip and may_be_mirrored(sample)
        return CropFlip(at if self.random_crop else None, mirrored)


def may_be_mirrored(sample: Sample) -> bool:
    """Whether a mirrored target picture still fits its conversation.

    Not where the text names sides, nor in dialogues, edits and stories, whose pictures go together; nor where a crop is
    recorded, since the width beyond its other side is unknown.
    """
    if sample.kind not in ("caption", "instruct") or len(sample.images) != 1 or any(sample.images[0].crop):
        return False
    words = [sample.images[0].caption, *(turn.text for turn in sample.turns)]
    return not any(_SIDES.search(text) for text in words)
