"""The micro world: coloured shapes on a plain ground, their pictures and their captions.

This package is plain NumPy and imports nothing else of the project: the data generator draws its samples from
it and the judge reads pictures back with it.
"""

from m2chat.world.captions import caption_of, parse_caption
from m2chat.world.render import IMAGE_SIZE, render
from m2chat.world.scene import (
    ATTRIBUTES,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    all_scenes,
    first_change,
    scenes_of_split,
)

__all__ = [
    "ATTRIBUTES",
    "COLOURS",
    "IMAGE_SIZE",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "Scene",
    "Shape",
    "all_scenes",
    "caption_of",
    "first_change",
    "parse_caption",
    "render",
    "scenes_of_split",
]
