"""Replies of several texts and pictures in their order, as other systems and benchmarks leave them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from m2chat.errors import UserError
from m2chat.schema import Picture, Reply, Segment


@dataclass(frozen=True)
class PicturePart:
    """A picture of a reply.

    Args:
        pixels: RGB, (H, W, 3), 0-255; None if it was due and is not there.
        caption: What it should show; None if that is not stated.
    """

    pixels: Picture | None
    caption: str | None = None


def text_at(row: object, key: str, where: str) -> str:
    """A text of a JSON object, empty where there is none.

    Args:
        row: Object.
        key: Key of the text.
        where: Place of the object, for the error.

    Raises:
        UserError: If there is no object, or the value is no text: its notation in Python would be scored as a text.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: {json.dumps(row)[:60]} is no object")
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {json.dumps(value)[:60]}, no text: write a text, or null for none")
    return value


def reply_of(parts: Iterable[str | PicturePart], caption: str = "") -> Reply:
    """A reply of parts; each picture ends a segment, as in M²Chat's replies, and each text is an element.

    Args:
        parts: Texts and pictures; blank texts are left out.
        caption: Caption of pictures that have none and no text before them; those behind a text have that text.
    """
    segments: list[Segment] = []
    images: list[Picture | None] = []
    waiting, newest = "", caption
    for part in parts:
        if isinstance(part, PicturePart):
            segments.append(Segment(waiting, newest if part.caption is None else part.caption))
            images.append(part.pixels)
            waiting = ""
        elif part.strip():
            if waiting:
                segments.append(Segment(waiting))
                images.append(None)
            waiting = newest = part.strip()
    if waiting or not segments:
        segments.append(Segment(waiting))
        images.append(None)
    return Reply(tuple(segments), tuple(images))


def parts_of(reply: Reply) -> list[str | PicturePart]:
    """Texts and pictures of a reply in their order, without pictures that are not there: the inverse of `reply_of`."""
    parts: list[str | PicturePart] = []
    for segment, pixels in zip(reply.segments, reply.images, strict=True):
        parts += [segment.answer.strip()] if segment.answer.strip() else []
        parts += [] if pixels is None else [PicturePart(pixels, segment.caption)]
    return parts
