"""Builder of a conversation in the emoji world."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from m2chat.schema import Kind, Picture, Sample
from m2chat.worlds import shared
from m2chat.worlds.emoji.scenes import STYLES, Scene

HIDDEN = ("style", "tone")
"""Attributes that a caption may leave to the context picture."""
_STYLE_WORDS = re.compile("|".join(STYLES.values()), re.IGNORECASE)
_SKIN_WORDS = re.compile(r"\b((?:medium-)?(?:light|dark)|medium) skin", re.IGNORECASE)


def named_in(text: str) -> dict[str, str]:
    """The hidden attributes that a text names: style and skin tone."""
    found: dict[str, str] = {}
    if style := _STYLE_WORDS.search(text):
        found["style"] = next(key for key, name in STYLES.items() if name.lower() == style[0].lower())
    if tone := _SKIN_WORDS.search(text):
        found["tone"] = tone[1].lower()
    return found


class Builder(shared.BaseConversationBuilder[Scene]):
    """Collects turns, pictures and scenes of a conversation, and what each reply answers.

    Args:
        draw: The picture of a scene.
    """

    def __init__(self, draw: Callable[[Scene], Picture]) -> None:
        super().__init__(draw, named_in, HIDDEN)
        self.step = ""
        """What is asked for now: the name of a step, such as ``wish``; replies are recorded under it."""
        self.steps: dict[str, str] = {}
        self.keywords: dict[str, list[str]] = {}

    def assistant(self, *parts: str | int, looks_back: bool = True) -> None:
        """A reply; arguments as for the base class."""
        self.steps[str(len(self.turns))] = self.step
        super().assistant(*parts, looks_back=looks_back)

    def sample(self, kind: Kind, source: str, number: int, **more: Any) -> Sample:
        """The finished conversation; ``meta`` has ``steps`` and ``keywords`` by turn of the reply."""
        sample = super().sample(kind, source, number, **more)
        return replace(sample, meta={**sample.meta, "steps": self.steps, "keywords": self.keywords})
