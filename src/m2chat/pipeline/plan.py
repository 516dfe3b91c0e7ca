"""How the replies of a session are made, and how they become part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from m2chat.schema import Image, Reply, Turn

ImageMode = Literal["auto", "force", "never"]
"""Whether a reply holds pictures: as the model decides, at least one, or none."""
IMAGE_MODES: tuple[ImageMode, ...] = ("auto", "force", "never")


@dataclass(frozen=True)
class SessionSettings:
    """What holds for every reply of a session unless a call says otherwise.

    Args:
        image: Whether replies hold pictures: ``auto``, ``force``, ``never``.
        max_images: Most pictures of a reply.
        seed: Of every reply; None takes another each time.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        size: Side of the pictures in pixels; None for what the model was made for.
        preview_every: Denoising steps between previews of a picture; 0 for none.
        max_new_tokens: Longest answer and longest caption.
        temperature: Of the words; 0 takes the likeliest.
        top_p: Share of the likelihood to sample from.
    """

    image: ImageMode = "auto"
    max_images: int = 4
    seed: int | None = None
    steps: int = 25
    guidance: float = 5.0
    size: int | None = None
    preview_every: int = 5
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 0.75


@dataclass(frozen=True)
class Plan:
    """A reply that is asked for: the conversation before it, and how it shall be made."""

    turns: tuple[Turn, ...]
    images: tuple[Image, ...]
    notes: tuple[dict[str, Any], ...]
    image: ImageMode
    max_images: int
    seed: int


def pictures_in(turns: Sequence[Turn]) -> int:
    """How many pictures were shown and drawn in some turns."""
    return sum(len(turn.pictures) for turn in turns)


def as_turn(reply: Reply, images: tuple[Image, ...]) -> tuple[Turn, tuple[Image, ...]]:
    """A reply as a turn of the conversation, and all pictures with its own."""
    parts: list[str | int] = []
    for segment, pixels in zip(reply.segments, reply.images, strict=True):
        if segment.answer.strip():
            parts.append(segment.answer)
        if pixels is not None:
            parts.append(len(images))
            images = (*images, Image(pixels, segment.caption or "", (pixels.shape[0], pixels.shape[1])))
    return Turn("assistant", tuple(parts)), images
