"""What people and the assistant of the emoji world say, from the lists beside this file, and how people type."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from m2chat.worlds.emoji.scenes import Scene

KIND_OF_GROUP: dict[str, str] = {
    "animal-": "animal", "plant-": "plant", "food-": "food", "drink": "drink", "heart": "heart", "face-": "feeling",
    "cat-face": "feeling", "sky-weather": "weather", "place-": "place", "hotel": "place", "transport-ground": "vehicle",
    "transport-air": "vehicle", "transport-water": "vehicle", "person-role": "person", "person-fantasy": "person",
    "sport": "sport",
}  # fmt: skip
"""Beginning of CLDR's subgroup, and the kind of moment that fits; other objects and activities are things."""
_SHORT = {
    "you": "u",
    "please": "pls",
    "are": "r",
    "thanks": "thx",
    "because": "cos",
    "for": "4",
    "I'm": "im",
}


@cache
def phrases() -> dict[str, Any]:
    """Wordings by name: texts with places for what they are about; ``moments`` by kind, ``small_talk`` in pairs."""
    return _table("phrases.yaml")


@cache
def everyday() -> list[tuple[str, str]]:
    """Everyday questions with SmolLM2's own answers (``everyday.yaml``)."""
    return list(_table("everyday.yaml").items())


@dataclass(frozen=True)
class Description:
    """How people ask for a concept without its name.

    Args:
        names: Other names, with their article: ``a phone`` for a mobile phone.
        descriptions: Descriptions, which leave the name out: ``something you climb to reach the roof``.
        remarks: Remarks that a picture of it would answer: ``the forecast says it will pour``.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    remarks: tuple[str, ...]


@cache
def descriptions() -> dict[str, Description]:
    """Descriptions by concept (``descriptions.jsonl``); signs, arrows, letters and families have none."""
    lines = files("m2chat.worlds.emoji").joinpath("descriptions.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    fields = ("names", "descriptions", "remarks")
    return {entry["concept"]: Description(*(tuple(entry[name]) for name in fields)) for entry in entries}


def _table(name: str) -> dict[str, Any]:
    text = files("m2chat.worlds.emoji").joinpath(name).read_text(encoding="utf-8")
    contents: dict[str, Any] = yaml.safe_load(text)
    return contents


def bare(noun: str) -> str:
    """A noun without article, capitals, marks and plural, as it is compared with others."""
    words = re.sub(r"[^a-z0-9 ]+", " ", noun.lower()).split()
    words = words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words
    return " ".join(word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in words)


def known_words(scenes: Iterable[Scene]) -> set[str]:
    """Every concept, name and keyword of a world, as `bare` writes them."""
    words = {word for scene in scenes for word in (scene.concept, scene.label, *scene.keywords)}
    return {bare(word) for word in words.union(*(known.names for known in descriptions().values()))}


def as_typed(text: str, rng: random.Random) -> str:
    """A text as somebody might type it: capitals, marks and letters out of place in a third of the cases.

    Args:
        text: The text, in plain spelling.
        rng: Source of randomness.
    """
    kind = rng.random()
    if rng.random() < 0.4:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.3 and text[-1:].isalpha():
        text += rng.choice((".", "!", ".", "…"))
    if kind < 0.08:
        return _misspelt(text, rng)
    if kind < 0.16:
        return text.lower().rstrip("?.!")
    if kind < 0.19:
        return text.upper()
    if kind < 0.24:
        words = [_SHORT.get(word, word) for word in text.split()]
        return " ".join(words).rstrip(".")
    if kind < 0.30:
        return rng.choice(("hey, ", "well, ", "hm, ", "ok, ", "so ", "and ")) + text[:1].lower() + text[1:]
    return text


def _misspelt(text: str, rng: random.Random) -> str:
    """A text with one letter left out, doubled, or swapped with the next."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    kinds = (text[:i] + text[i + 1 :], text[:i] + text[i] + text[i:], text[:i] + text[i + 1] + text[i] + text[i + 2 :])
    return rng.choice(kinds)
