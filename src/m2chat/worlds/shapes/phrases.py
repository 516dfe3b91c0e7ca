"""Small talk, questions, edits and stories of the micro world, word by word."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from m2chat.world import Example
from m2chat.worlds.shapes.captions import with_article
from m2chat.worlds.shapes.scenes import Scene, Shape, render

SMALL_TALK = (
    ("hello", "Hello , what shall we draw ?"),
    ("thank you", "You are welcome , anything else ?"),
    ("how are you ?", "I am fine and ready to draw ."),
    ("who are you ?", "I am a painter of small things ."),
)

QUESTIONS = (
    ("colour", "which colour does it have ?", "It looks {} to me ."),
    ("shape", "what do you call that shape ?", "I would call it {} ."),
    ("background", "what lies behind it ?", "There is only {} behind it ."),
)
"""Attribute that is asked for, question, and the answer with a place for its value."""

STORIES: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "position",
        "tell me how it travels :",
        (
            ("left", "First it waits on the left ."),
            ("top", "Then it climbs to the top ."),
            ("right", "It slides down on the right ."),
            ("bottom", "At last it rests at the bottom ."),
        ),
    ),
    (
        "background",
        "tell me of the evening with",
        (
            ("yellow", "The day is bright and yellow ."),
            ("orange", "Slowly the light turns orange ."),
            ("purple", "The sky grows purple ."),
            ("black", "Now the night has come ."),
        ),
    ),
    (
        "colour",
        "tell me how it ripens :",
        (
            ("green", "In spring it is green ."),
            ("yellow", "The summer makes it yellow ."),
            ("orange", "It becomes orange in autumn ."),
            ("red", "In winter it is red and sweet ."),
        ),
    ),
    (
        "shape",
        "tell me of the magic of",
        (
            ("circle", "It begins as a circle ."),
            ("ring", "A spell opens a hole : a ring !"),
            ("square", "It folds into a square ."),
            ("triangle", "And it ends as a triangle ."),
        ),
    ),
)
"""Attribute that changes, opener, and each frame's value and sentence."""


def edit_words(name: str, after: Scene, rng: random.Random) -> tuple[str, str]:
    """Instruction and answer of an edit.

    Args:
        name: Name of the attribute that changes.
        after: Scene after the edit.
        rng: Source of the random choice among phrasings.
    """
    value = after.attributes[name]
    if name == "shape":
        return f"turn it into {with_article(value)}", f"It has become {with_article(value)} ."
    if name == "size":
        return f"make it {value}", f"Now it is {value} and ready ."
    if name == "position":
        return f"move it to the {value}", f"I have moved it to the {value} ."
    if name == "background":
        return f"put {with_article(value)} background behind it", f"Behind it is {value} now ."
    if after.second is not None:
        side = "right" if name == "colour_2" else "left"
        return f"make the {side} one {value}", f"The {side} one is {value} now ."
    if rng.random() < 0.5:
        return f"paint it {value}", f"I have painted it {value} ."
    return f"I like {value} more", f"Sure , {value} it is !"


def examples() -> Mapping[str, Sequence[Example]]:
    """Requests that the micro model understands, by task."""
    picture = render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))
    return {
        "chat": [
            "please paint a large red circle on the left on a blue background",
            "I dream of a ball like the sea in front of snow",
            "tell me how it ripens : a large green ring on the left on a white background",
            ("turn it into a ring", picture),
        ],
        "draw": ["a small red ring at the top on a white background", "a large yellow square on a black background"],
        "wish": ["I dream of a ball like the sea in front of snow"],
        "edit": [("turn it into a ring\nmake it small\npaint it white", picture)],
        "story": ["tell me how it ripens : a large green ring on the left on a white background"],
    }
