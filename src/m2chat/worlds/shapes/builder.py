"""Builder of a conversation in the shapes world."""

from __future__ import annotations

import numpy as np

from m2chat.worlds import shared
from m2chat.worlds.shapes.captions import parse_caption
from m2chat.worlds.shapes.scenes import Scene, render

HIDDEN = ("size", "position", "background")
"""Attributes that a caption may leave to the context picture."""


class ConversationBuilder(shared.BaseConversationBuilder[Scene]):
    """Collects turns, pictures and scenes of a conversation.

    Args:
        noise: Source of the small displacement of objects in its pictures.
    """

    def __init__(self, noise: np.random.Generator) -> None:
        super().__init__(lambda scene: render(scene, noise), parse_caption, HIDDEN)
