"""Pictures of scenes, drawn from signed distances so that every edge is antialiased."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2chat.world.scene import COLOURS, PAIR_RADIUS, POSITIONS, SIZES, Scene

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
        scene: What to draw.
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
