"""Builder of a conversation in the shapes world."""

from __future__ import annotations

import numpy as np

from m2chat.schema import Image, Kind, Sample, Turn
from m2chat.worlds.shapes.captions import parse_caption
from m2chat.worlds.shapes.scenes import Scene, render

HIDDEN = ("size", "position", "background")
"""Attributes that a caption may leave to the context picture."""


class ConversationBuilder:
    """Collects turns, pictures and scenes of a conversation.

    Args:
        noise: Source of the small displacement of objects in its pictures.
    """

    def __init__(self, noise: np.random.Generator) -> None:
        self.noise = noise
        self.turns: list[Turn] = []
        self.images: list[Image] = []
        self.scenes: list[Scene] = []
        self.omitted: dict[str, list[str]] = {}

    def picture(self, scene: Scene, caption: str) -> int:
        """Draws a scene and returns its index."""
        pixels = render(scene, self.noise)
        self.images.append(Image(pixels, caption, (pixels.shape[0], pixels.shape[1])))
        self.scenes.append(scene)
        return len(self.images) - 1

    def unnamed(self) -> list[str]:
        """What the newest picture's caption leaves out; the next one's does too, unless it changes just that."""
        named = parse_caption(self.images[-1].caption)
        return [name for name in HIDDEN if name not in named]

    def user(self, *parts: str | int) -> None:
        """The user's turn."""
        self.turns.append(Turn("user", parts))

    def assistant(self, *parts: str | int, looks_back: bool = True) -> None:
        """A reply; records the attributes of its picture that only the context picture shows.

        Args:
            parts: Texts and pictures.
            looks_back: Whether the picture continues an earlier one.
        """
        turn = Turn("assistant", tuple(part for part in parts if part != ""))
        for target in turn.pictures:
            attributes = self.scenes[target].attributes
            texts = [image.caption for image in self.images] + [item.text for item in self.turns]
            named = {name for text in texts for name in parse_caption(text)}
            if target and looks_back:
                before = self.scenes[target - 1].attributes
                hidden = [n for n in HIDDEN if n in attributes and n not in named and before.get(n) == attributes[n]]
                if hidden:
                    self.omitted[str(len(self.turns))] = hidden
        self.turns.append(turn)

    def sample(self, kind: Kind, source: str, number: int) -> Sample:
        """The finished conversation."""
        meta = {"scenes": [scene.attributes for scene in self.scenes], "omitted": self.omitted}
        return Sample(
            f"{source}/{number:06d}", tuple(self.turns), tuple(self.images), kind=kind, source=source, meta=meta
        )
