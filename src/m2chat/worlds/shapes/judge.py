"""The judge of the shapes world: reads a picture's attributes from its pixels, without any trained network.

It compares a picture with a drawing of every possible scene and takes the nearest (analysis by synthesis). The
error is a sum over pixels and two objects never share a pixel, so the two halves of a picture are fitted apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from m2chat.schema import Picture
from m2chat.worlds.shapes.scenes import (
    COLOURS,
    IMAGE_SIZE,
    PAIR_OFFSET,
    PAIR_RADIUS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    coverage,
)

MAX_ERROR = 26.0
"""Largest root-mean-square error, in grey levels of 255, at which a picture still counts as a scene."""


@dataclass(frozen=True)
class Verdict:
    """What the judge saw.

    Args:
        scene: The nearest scene.
        error: Root-mean-square difference to its drawing, in grey levels of 255.
    """

    scene: Scene
    error: float

    @property
    def key(self) -> str:
        """Key of the scene."""
        return self.scene.key

    @property
    def seen(self) -> dict[str, str]:
        """Attributes of what is shown; none if the picture resembles nothing."""
        return self.scene.attributes if self.error <= MAX_ERROR else {}

    def right(self, wanted: Mapping[str, str]) -> dict[str, bool]:
        """Whether each wanted attribute is there; all are wrong in a picture that resembles no scene."""
        return {name: self.seen.get(name) == value for name, value in wanted.items()}

    def all_right(self, wanted: Mapping[str, str]) -> bool:
        """Whether every wanted attribute is there, and no unwanted second object."""
        extra = self.scene.second is not None and "shape_2" not in wanted
        return not extra and all(self.right(wanted).values())


def _drawings(
    places: Sequence[tuple[float, tuple[float, float]]], columns: slice
) -> tuple[NDArray[np.float32], list[tuple[int, str, str, str]]]:
    """Every drawing of one object at the given places, cut to some columns, flattened: (K, pixels)."""
    rows, names = [], []
    for place, (radius, centre) in enumerate(places):
        for shape in SHAPES:
            alpha = coverage(shape, radius, centre)[:, columns, None]
            for colour, rgb in COLOURS.items():
                for ground, ground_rgb in COLOURS.items():
                    if colour != ground:
                        picture = alpha * np.array(rgb, np.float32) + (1 - alpha) * np.array(ground_rgb, np.float32)
                        rows.append(picture.reshape(-1))
                        names.append((place, shape, colour, ground))
    return np.stack(rows).astype(np.float32), names


_SINGLE_PLACES = [(size, position) for size in SIZES for position in POSITIONS]


@cache
def _templates() -> list[tuple[NDArray[np.float32], NDArray[np.float32], list[tuple[int, str, str, str]]]]:
    """Drawings, their squared norms and names: whole pictures of one object, then left and right halves of two."""
    half = IMAGE_SIZE // 2
    sets = [
        _drawings([(SIZES[size], POSITIONS[position]) for size, position in _SINGLE_PLACES], slice(None)),
        _drawings([(PAIR_RADIUS, (-PAIR_OFFSET, 0.0))], slice(None, half)),
        _drawings([(PAIR_RADIUS, (PAIR_OFFSET, 0.0))], slice(half, None)),
    ]
    return [(rows, (rows**2).sum(1), names) for rows, names in sets]


def judge(pictures: NDArray[np.uint8]) -> list[Verdict]:
    """Reads the scene of each picture.

    Args:
        pictures: RGB, (B, IMAGE_SIZE, IMAGE_SIZE, 3), 0-255.

    Returns:
        One verdict a picture.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"the judge reads pictures of (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3), not {pictures.shape}")
    whole, left, right = _templates()
    images = pictures.astype(np.float32)
    half = IMAGE_SIZE // 2
    parts = (images, images[:, :, :half], images[:, :, half:])
    flat = [part.reshape(len(images), -1) for part in parts]
    errors = [
        (pixels**2).sum(1, keepdims=True) - 2 * pixels @ rows.T + norms
        for pixels, (rows, norms, _) in zip(flat, (whole, left, right), strict=True)
    ]
    grounds = np.array([name[3] for name in left[2]])
    read = []
    for index in range(len(images)):
        best = int(errors[0][index].argmin())
        place, shape, colour, ground = whole[2][best]
        size, position = _SINGLE_PLACES[place]
        scene, error = Scene(Shape(shape, colour), ground, None, size, position), float(errors[0][index, best])
        for ground in COLOURS:
            of_ground = np.flatnonzero(grounds == ground)
            first = of_ground[errors[1][index, of_ground].argmin()]
            second = of_ground[errors[2][index, of_ground].argmin()]
            total = float(errors[1][index, first] + errors[2][index, second])
            if total < error:
                pair = [Shape(*side[2][k][1:3]) for side, k in ((left, first), (right, second))]
                scene, error = Scene(pair[0], ground, pair[1]), total
        read.append(Verdict(scene, float(np.sqrt(max(error, 0.0) / flat[0].shape[1]))))
    return read


_DRAW_WORDS = re.compile(r"\b(draw|paint|picture|show|sketch)\b", re.IGNORECASE)


def asks_openly(request: str) -> bool:
    """Whether a request asks for a picture by a word such as "draw", "paint" or "picture"."""
    return _DRAW_WORDS.search(request) is not None


def verdicts(pictures: Sequence[Picture | None]) -> list[Verdict | None]:
    """A verdict a picture; None where it is missing."""
    there = [picture for picture in pictures if picture is not None]
    judged = iter(judge(np.stack(there)) if there else [])
    return [None if picture is None else next(judged) for picture in pictures]


def seen_in(pictures: Sequence[Picture | None]) -> list[dict[str, str]]:
    """Attributes that the judge reads; none in a picture that is missing or resembles no scene."""
    return [{} if verdict is None else verdict.seen for verdict in verdicts(pictures)]


def shows(seen: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all that is wanted is there, and no unwanted second object."""
    extra = "shape_2" in seen and "shape_2" not in wanted
    return bool(seen) and not extra and all(seen.get(name) == value for name, value in wanted.items())


def right(pictures: Sequence[Picture | None], wanted: Sequence[Mapping[str, str]]) -> list[bool]:
    """Whether each picture shows what it should; a missing one does not."""
    return [shows(seen, attributes) for seen, attributes in zip(seen_in(pictures), wanted, strict=True)]


def kept(frames: Sequence[Picture | None], changing: str) -> list[bool]:
    """Whether the subject stays the same from each frame of a story to the next.

    Args:
        frames: Pictures of one story, in order.
        changing: The attribute that the story is about.

    Returns:
        One truth value a pair of consecutive frames; false where one of them is missing or shows nothing known.
    """
    seen = [{name: value for name, value in attributes.items() if name != changing} for attributes in seen_in(frames)]
    return [bool(first) and first == second for first, second in pairwise(seen)]
