"""Scenes: tuples of attributes, their division into training, validation and test, and their pictures.

Pictures are drawn from signed distances, so that every edge is antialiased.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 26),
    "yellow": (250, 220, 50),
    "green": (44, 160, 60),
    "cyan": (70, 210, 220),
    "blue": (40, 80, 210),
    "purple": (130, 60, 180),
    "pink": (250, 150, 200),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
"""Name to sRGB value, 0-255."""

SHAPES = ("circle", "square", "triangle", "ring")
SIZES: dict[str, float] = {"small": 5.0, "large": 8.5}
"""Name to radius in pixels."""
PAIR_RADIUS = 6.0
"""Radius in pixels of each object when there are two: between the two sizes, and never named in a caption."""
POSITIONS: dict[str, tuple[float, float]] = {
    "middle": (0.0, 0.0),
    "left": (-6.5, 0.0),
    "right": (6.5, 0.0),
    "top": (0.0, -6.5),
    "bottom": (0.0, 6.5),
}
"""Name to offset (x, y) in pixels from the centre of the picture."""
ATTRIBUTES = ("shape", "colour", "shape_2", "colour_2", "size", "position", "background")
"""Attribute names, in the order of a scene's tuple. ``shape_2`` and ``colour_2`` exist in scenes of two objects
(the right one), ``size`` and ``position`` in scenes of one."""

Split = Literal["train", "val", "test"]
HELD_OUT_PER_SPLIT = 300
"""Scenes of one object, and as many of two, that belong to each of ``val`` and ``test``."""


@dataclass(frozen=True)
class Shape:
    """One object of a scene.

    Args:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
    """

    shape: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """A picture's content: one object with size and position, or two side by side.

    Args:
        first: The object, or the left one of two.
        background: One of `COLOURS`, different from every object's colour.
        second: The right object, if there are two.
        size: One of `SIZES`; None if there are two objects.
        position: One of `POSITIONS`; None if there are two objects.
    """

    first: Shape
    background: str
    second: Shape | None = None
    size: str | None = None
    position: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """Attribute name to value, without those that the scene does not have."""
        second = self.second
        values = {
            "shape": self.first.shape,
            "colour": self.first.colour,
            "shape_2": second.shape if second else None,
            "colour_2": second.colour if second else None,
            "size": self.size,
            "position": self.position,
            "background": self.background,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def key(self) -> str:
        """The attribute tuple as text: two scenes are the same if and only if their keys are."""
        return "/".join(self.attributes.get(name, "-") for name in ATTRIBUTES)

    @classmethod
    def from_attributes(cls, attributes: dict[str, str]) -> Scene:
        """Inverse of `attributes`."""
        second = Shape(attributes["shape_2"], attributes["colour_2"]) if "shape_2" in attributes else None
        return cls(
            Shape(attributes["shape"], attributes["colour"]),
            attributes["background"],
            second,
            attributes.get("size"),
            attributes.get("position"),
        )

    def with_attribute(self, name: str, value: str) -> Scene:
        """The same scene with one attribute changed."""
        if name not in self.attributes:
            raise ValueError(f"the scene {self.key} has no attribute {name!r}; it has {sorted(self.attributes)}")
        return Scene.from_attributes({**self.attributes, name: value})

    @property
    def is_valid(self) -> bool:
        """Whether every object differs from the background."""
        objects = (self.first,) if self.second is None else (self.first, self.second)
        return all(item.colour != self.background for item in objects)


def first_change(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The first attribute in which two scenes of the same attributes differ.

    Args:
        before: Attributes of one scene.
        after: Attributes of the other, which differs.
    """
    return next(name for name in before if before[name] != after[name])


def _singles() -> Iterator[Scene]:
    for shape in SHAPES:
        for colour in COLOURS:
            for size in SIZES:
                for position in POSITIONS:
                    for background in COLOURS:
                        yield Scene(Shape(shape, colour), background, None, size, position)


def _pairs() -> Iterator[Scene]:
    objects = [Shape(shape, colour) for shape in SHAPES for colour in COLOURS]
    for first in objects:
        for second in objects:
            for background in COLOURS:
                yield Scene(first, background, second)


@cache
def all_scenes(objects: Literal[1, 2]) -> tuple[Scene, ...]:
    """Every valid scene of one or of two objects: 3,600 and 12,960 of them."""
    scenes = _singles() if objects == 1 else _pairs()
    return tuple(scene for scene in scenes if scene.is_valid)


@cache
def scenes_of_split(split: Split, objects: Literal[1, 2]) -> tuple[Scene, ...]:
    """The scenes of one split, in a fixed order that has nothing to do with their attributes.

    The order is that of the keys' SHA-256, so membership never depends on a random generator.

    Args:
        split: ``train``, ``val`` or ``test``.
        objects: Number of objects, 1 or 2.
    """
    ordered = sorted(all_scenes(objects), key=lambda scene: hashlib.sha256(scene.key.encode()).hexdigest())
    held_out = HELD_OUT_PER_SPLIT
    parts = {"test": ordered[:held_out], "val": ordered[held_out : 2 * held_out], "train": ordered[2 * held_out :]}
    if split not in parts:
        raise ValueError(f"unknown split {split!r}; choose one of {sorted(parts)}")
    return tuple(parts[split])


@cache
def held_out_keys() -> frozenset[str]:
    """Keys of every scene of ``val`` and ``test``."""
    return frozenset(
        scene.key for split in ("val", "test") for objects in (1, 2) for scene in scenes_of_split(split, objects)
    )


IMAGE_SIZE = 32
"""Width and height of every picture, in pixels."""
PAIR_OFFSET = 7.5
"""Horizontal distance in pixels of each of two objects from the centre."""
JITTER = 0.5
"""Largest displacement of an object in pixels: the pictures of one scene are alike, not identical."""

_AXIS = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5 - IMAGE_SIZE / 2
_Y, _X = np.meshgrid(_AXIS, _AXIS, indexing="ij")


def coverage(shape: str, radius: float, centre: tuple[float, float]) -> NDArray[np.float32]:
    """How much of each pixel a shape covers.

    Args:
        shape: One of `SHAPES`.
        radius: No part of the shape is farther from its centre along either axis, in pixels.
        centre: Offset (x, y) of the shape from the picture's centre, in pixels.

    Returns:
        Coverage in [0, 1], (IMAGE_SIZE, IMAGE_SIZE).
    """
    x, y = _X - centre[0], _Y - centre[1]
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.72 * radius) - 0.28 * radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
    elif shape == "triangle":
        # Two slanted sides that meet at the top, and the base.
        slant = (np.abs(x) * 1.8 - (y + radius)) / np.hypot(1.8, 1.0)
        distance = np.maximum(slant, y - 0.8 * radius)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    covered: NDArray[np.float32] = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    return covered


def placements(scene: Scene) -> list[tuple[str, str, float, tuple[float, float]]]:
    """Shape, colour, radius and centre of each object of a scene."""
    first = scene.first
    if scene.second is None:
        assert scene.size is not None and scene.position is not None
        return [(first.shape, first.colour, SIZES[scene.size], POSITIONS[scene.position])]
    return [
        (first.shape, first.colour, PAIR_RADIUS, (-PAIR_OFFSET, 0.0)),
        (scene.second.shape, scene.second.colour, PAIR_RADIUS, (PAIR_OFFSET, 0.0)),
    ]


def render(scene: Scene, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Draws a scene.

    Args:
        scene: Scene to draw.
        rng: Source of the small displacement of each object; None draws every object in its place.

    Returns:
        RGB picture, (IMAGE_SIZE, IMAGE_SIZE, 3), 0-255.
    """
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    picture[:] = COLOURS[scene.background]
    for shape, colour, radius, (x, y) in placements(scene):
        dx, dy = rng.uniform(-JITTER, JITTER, 2) if rng is not None else (0.0, 0.0)
        alpha = coverage(shape, radius, (x + dx, y + dy))[..., None]
        picture = picture * (1 - alpha) + np.asarray(COLOURS[colour], np.float32) * alpha
    return np.round(picture).astype(np.uint8)
