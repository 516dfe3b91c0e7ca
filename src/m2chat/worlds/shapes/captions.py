"""Captions: exact sentences about scenes, in several styles, the way back, and which things have which colour."""

from __future__ import annotations

import random
import re
from collections.abc import Collection

from m2chat.worlds.shapes.scenes import COLOURS, SHAPES, Scene, Shape

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

_PLACE = {
    "middle": "in the middle",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}


def with_article(words: str) -> str:
    """``"orange circle"`` becomes ``"an orange circle"``."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def thing(shape: Shape, size: str | None = None) -> str:
    """``"a large red circle"``."""
    return with_article(f"{size} {shape.colour} {shape.shape}" if size else f"{shape.colour} {shape.shape}")


def caption_of(scene: Scene, omit: Collection[str] = ()) -> str:
    """The caption of a scene.

    Args:
        scene: Scene that the picture shows.
        omit: Names of attributes to leave out, of ``size``, ``position`` and ``background``.

    Returns:
        Such as ``"a large red circle on the left on a blue background"`` or
        ``"a red ring left of a pink square on a black background"``.
    """
    ground = "" if "background" in omit else f" on {with_article(scene.background)} background"
    if scene.second is not None:
        return f"{thing(scene.first)} left of {thing(scene.second)}{ground}"
    size = None if "size" in omit else scene.size
    place = "" if "position" in omit or scene.position is None else f" {_PLACE[scene.position]}"
    return f"{thing(scene.first, size)}{place}{ground}"


def alt_text(scene: Scene) -> str:
    """A caption in the style of alt texts on the web: keywords separated by commas."""
    first = f"{scene.first.colour} {scene.first.shape}"
    if scene.second is not None:
        return f"{first} left , {scene.second.colour} {scene.second.shape} right , {scene.background} background"
    return f"{scene.size} {first} , {scene.position} , {scene.background} background"


def paraphrases(scene: Scene) -> list[str]:
    """Five different captions of one scene, as five people would write them."""
    ground = with_article(scene.background)
    if scene.second is not None:
        left, right = thing(scene.first), thing(scene.second)
        return [
            caption_of(scene),
            f"{left} and {right} on {ground} background",
            f"{left} beside {right} on {ground} background",
            f"on {ground} background {left} left of {right}",
            f"{left} next to {right} in front of {scene.background}",
        ]
    assert scene.position is not None
    item, place = thing(scene.first, scene.size), _PLACE[scene.position]
    return [
        caption_of(scene),
        f"{item} on {ground} background {place}",
        f"{place} there is {item} on {ground} background",
        f"on {ground} background {item} {place}",
        f"{item} {place} in front of {scene.background}",
    ]


def random_caption(scene: Scene, rng: random.Random) -> str:
    """A caption in a random style: exact in half of the draws, else partial, keywords or a paraphrase."""
    style = rng.random()
    if style < 0.5:
        return caption_of(scene)
    if style < 0.75:
        names = [name for name in ("size", "position", "background") if name in scene.attributes]
        return caption_of(scene, omit=rng.sample(names, rng.randint(1, len(names))))
    return alt_text(scene) if style < 0.85 else rng.choice(paraphrases(scene))


_NOUN = re.compile(r"(?:\b(small|large) )?\b(" + "|".join(COLOURS) + r") (" + "|".join(SHAPES) + r")\b")
_GROUND = re.compile(r"\b(?:(" + "|".join(COLOURS) + r") background|in front of (" + "|".join(COLOURS) + r"))\b")
_WHERE = re.compile(r"(?:\bin the|\bon the|\bat the|,) (middle|left|right|top|bottom)\b")


def parse_caption(text: str) -> dict[str, str]:
    """Reads the attributes that a caption names.

    Args:
        text: A caption in any of this module's styles.

    Returns:
        Attribute name to value; an attribute that is not named is absent.
    """
    named: dict[str, str] = {}
    nouns = list(_NOUN.finditer(text))
    for suffix, noun in zip(("", "_2"), nouns, strict=False):
        named["colour" + suffix], named["shape" + suffix] = noun.group(2), noun.group(3)
    if len(nouns) == 1:
        if nouns[0].group(1):
            named["size"] = nouns[0].group(1)
        if where := _WHERE.search(text):
            named["position"] = where.group(1)
    if ground := _GROUND.search(text):
        named["background"] = ground.group(1) or ground.group(2)
    return named


def themed_text(shape: str, colour: str, background: str) -> str:
    """A caption made of things that look like the picture: ``"a ball like the sea in front of snow"``."""
    return f"a {TOY_OF[shape]} like the {THING_OF[colour]} in front of {THING_OF[background]}"


def mood_of(colour: str, background: str) -> str | None:
    """The mood of two colours, if they have one."""
    for mood, colours in MOODS.items():
        if colours == (colour, background):
            return mood
    return None
