"""What the micro world knows beyond pictures: which things have which colour, shape and mood."""

from __future__ import annotations

COLOUR_OF = {
    "rose": "red",
    "carrot": "orange",
    "sun": "yellow",
    "grass": "green",
    "ice": "cyan",
    "sea": "blue",
    "grape": "purple",
    "pig": "pink",
    "snow": "white",
    "night": "black",
}
"""Thing to colour; every colour has one."""

THING_OF = {colour: thing for thing, colour in COLOUR_OF.items()}
"""Colour to thing."""

SHAPE_OF = {"ball": "circle", "box": "square", "roof": "triangle", "wheel": "ring"}
"""Thing to shape; every shape has one."""

TOY_OF = {shape: toy for toy, shape in SHAPE_OF.items()}
"""Shape to thing."""

MOODS = {
    "warm": ("red", "orange"),
    "cold": ("white", "cyan"),
    "scary": ("purple", "black"),
    "fresh": ("yellow", "green"),
    "sweet": ("pink", "white"),
    "calm": ("cyan", "blue"),
}
"""Mood to the colours of an object and its background."""


def themed_text(shape: str, colour: str, background: str) -> str:
    """A picture told through things that look like it: ``"a ball like the sea in front of snow"``."""
    return f"a {TOY_OF[shape]} like the {THING_OF[colour]} in front of {THING_OF[background]}"


def mood_of(colour: str, background: str) -> str | None:
    """The mood of two colours, if they have one."""
    for mood, colours in MOODS.items():
        if colours == (colour, background):
            return mood
    return None
