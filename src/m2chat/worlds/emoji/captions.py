"""Captions of emoji in natural English: names and keywords as people wrote them, attributes and style as phrases."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from m2chat.worlds.emoji.names import phrase_of, with_article
from m2chat.worlds.emoji.scenes import STYLES, Scene

STYLED = 0.5
"""Share of drawn captions that name the style."""


@dataclass(frozen=True)
class Caption:
    """A caption and what it leaves open.

    Args:
        text: The caption.
        names_style: Whether it names the style.
    """

    text: str
    names_style: bool


def noun_phrase(scene: Scene) -> str:
    """The name with its article, where English wants one: ``a red apple``, ``grapes``, ``a clock at two o'clock``."""
    return phrase_of(scene.label, scene.subgroup)


def _tone_phrases(scene: Scene, phrase: str) -> tuple[str, ...]:
    """Every way to add the skin tone to a name; an empty one if there is none."""
    if not scene.tone:
        return ("",)
    joined = ", with" if ":" in phrase or "facing" in phrase else " and" if " with " in phrase else " with"
    tone = with_article(scene.tone)
    return f"{joined} {scene.tone} skin", f"{joined} {tone} skin tone", f", {scene.tone} skin tone"


def _bodies(scene: Scene, phrase: str) -> tuple[str, ...]:
    """The name with every way to add its attributes."""
    if scene.hair and ":" in scene.label:  # "woman: red hair" reads better as "a woman with red hair"
        who, what = scene.label.split(": ", 1)
        phrase = with_article(f"bald {who}" if scene.hair == "bald" else f"{who} with {what}")
        if scene.tone:
            return (f"{phrase} and {scene.tone} skin" if scene.hair != "bald" else f"{phrase} with {scene.tone} skin",)
        return (phrase,)
    return tuple(phrase + tone for tone in _tone_phrases(scene, phrase))


def _body(scene: Scene, phrase: str, rng: random.Random) -> str:
    """The name, with one way to add its attributes."""
    bodies = _bodies(scene, phrase)
    return bodies[0] if len(bodies) == 1 else rng.choice(bodies)


def phrases_of(scene: Scene) -> tuple[str, ...]:
    """Every phrase by which captions name the scene, without style, keywords and openings."""
    return tuple(dict.fromkeys((*_bodies(scene, noun_phrase(scene)), *_bodies(scene, scene.label))))


def _keywords(scene: Scene, count: int, rng: random.Random) -> list[str]:
    named = set(_WORD.findall(f"{scene.label} {noun_phrase(scene)}".lower()))
    free = [word for word in scene.keywords if _WORD.search(word) and word.lower() not in named]
    free = [word for word in free if len(word.split()) < 3]
    return rng.sample(free, min(count, len(free)))


def caption_of(scene: Scene, style: bool = True) -> str:
    """The exact caption: the name, the attributes and, if wanted, the style."""
    text = _body(scene, noun_phrase(scene), random.Random(0))
    return f"{text} in {STYLES[scene.style]} style" if style else text


def _by_name(scene: Scene, rng: random.Random) -> str:
    return _body(scene, noun_phrase(scene) if rng.random() < 0.7 else scene.label, rng)


def _with_keywords(scene: Scene, rng: random.Random) -> str:
    words = _keywords(scene, rng.randint(1, 3), rng)
    name = _by_name(scene, rng)
    if not words:
        return name
    return rng.choice(
        (f"{name}: {', '.join(words)}", f"{name}, {' and '.join(words[:2])}", f"{name} ({', '.join(words)})")
    )


def _of_keywords(scene: Scene, rng: random.Random) -> str:
    """Keywords alone, where nothing is lost that they cannot say: who, with which skin and hair."""
    words = _keywords(scene, 3, rng)
    if len(words) < 3 or not scene.is_plain:
        return _with_keywords(scene, rng)
    return rng.choice(
        (
            ", ".join(words),
            f"something about {words[0]}, {words[1]} and {words[2]}",
            f"{words[0]} {words[1]} {words[2]}",
        )
    )


_OPENINGS = ("a picture of", "an emoji of", "a drawing of", "an icon of", "a small picture of")


def _as_picture(scene: Scene, rng: random.Random) -> str:
    opening = rng.choice(_OPENINGS)
    return f"{opening} {_body(scene, noun_phrase(scene), rng)}"


_KINDS: tuple[tuple[float, Callable[[Scene, random.Random], str]], ...] = (
    (0.45, _by_name),
    (0.25, _with_keywords),
    (0.1, _of_keywords),
    (0.2, _as_picture),
)


_STYLED = ("{text} in {name} style",) * 2 + ("{text}, {name} style", "{name} style: {text}", "{text} ({name})")


def draw_caption(scene: Scene, rng: random.Random, style: bool | None = None) -> Caption:
    """One of the many captions of a picture.

    Args:
        scene: What it shows.
        rng: Source of randomness.
        style: Whether it names the style; in half of the cases if None.
    """
    kinds = [kind for _, kind in _KINDS]
    kind = rng.choices(kinds, [weight for weight, _ in _KINDS])[0]
    text = kind(scene, rng)
    named = rng.random() < STYLED if style is None else style
    if named:
        text = rng.choice(_STYLED).format(text=text, name=STYLES[scene.style])
    return Caption(text, named)


def captions_of(scene: Scene, count: int = 5) -> list[str]:
    """Several captions of a picture, always the same ones, the exact one first."""
    rng = random.Random(f"{scene.style}/{scene.hexcode}")
    captions = dict.fromkeys([caption_of(scene), caption_of(scene, style=False)])
    while len(captions) < count:
        captions[draw_caption(scene, rng).text] = None
    return list(captions)


class CaptionReader:
    """Reads back what a caption names: the other direction of `draw_caption`.

    Args:
        scenes: Every scene of the world. A phrase that names several of them names what these have in common.
    """

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self._named: dict[str, dict[str, str]] = {}
        for scene in scenes:
            attributes = {name: value for name, value in scene.attributes.items() if name != "style"}
            for phrase in phrases_of(scene):
                known = self._named.setdefault(phrase.lower(), attributes)
                if known != attributes:
                    self._named[phrase.lower()] = dict(known.items() & attributes.items())

    def read(self, caption: str) -> dict[str, str]:
        """Attributes that a caption names, with the style if it names one; empty where no concept is named.

        A caption of keywords alone names no concept, however clear it is to a reader.
        """
        text, style = _without_style(caption.strip())
        for opening in _OPENINGS:
            text = text.removeprefix(f"{opening} ")
        text = text.lower().removesuffix(".")
        # Keywords follow the name behind a colon, a comma or a bracket, and names may hold these too: the longest wins.
        ends = [len(text), *sorted((match.start() for match in _ENDS.finditer(text)), reverse=True)]
        for end in ends:
            if (named := self._named.get(text[:end])) and "concept" in named:
                return named | style
        return {}


_WORD = re.compile(r"[\w'-]*\w")
_ENDS = re.compile(r"[:,]| \(")
_STYLE_NAMES = {name.lower(): key for key, name in STYLES.items()}
_ANY_STYLE = "|".join(STYLES.values())
_STYLE_FORMS = re.compile(
    rf"(?:,| in) (?P<a>{_ANY_STYLE}) style$|^(?P<b>{_ANY_STYLE}) style: | \((?P<c>{_ANY_STYLE})\)$", re.IGNORECASE
)


def _without_style(caption: str) -> tuple[str, dict[str, str]]:
    """A caption without the phrase that names its style, and that style as an attribute."""
    match = _STYLE_FORMS.search(caption)
    if match is None:
        return caption, {}
    name = next(value for value in match.groups() if value)
    return caption[: match.start()] + caption[match.end() :], {"style": _STYLE_NAMES[name.lower()]}
