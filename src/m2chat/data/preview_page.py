"""A page of previews: one HTML file with its pictures in it, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from m2chat.data.preview import SPANS, Preview
from m2chat.schema import Image

_THUMBNAIL = 240
"""Longer side of a picture on the page, in pixels."""
_SMALL = 64
"""Side up to which a picture is enlarged without interpolation and stored without loss, in pixels."""


@dataclass(frozen=True)
class _Figure:
    """A picture on the page.

    Args:
        role: ``target``, ``context`` or ``picture``.
        number: Number of the picture in its conversation, from 1.
        caption: Caption; may be empty.
        sizes: Size of the stored picture, and of the original where it differs, in words.
        width: Width on the page, in pixels.
        height: Height on the page, in pixels.
        enlarged: Whether it is shown larger than it is.
        square: Position of the central square, as CSS; empty if it is the whole picture.
        uri: Content, as a ``data:`` URI.
    """

    role: str
    number: int
    caption: str
    sizes: str
    width: int
    height: int
    enlarged: bool
    square: str
    uri: str


def preview_page(replies: Sequence[Preview], title: str, max_tokens: int) -> str:
    """The page.

    Args:
        replies: Previews, a card each.
        title: Origin of the samples.
        max_tokens: Longest sequence.

    Returns:
        HTML. All texts of the data are escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader("m2chat.data", "."), autoescape=True, undefined=StrictUndefined)
    cards = [(reply, _figures(reply)) for reply in replies]
    return pages.get_template("preview.html").render(title=title, max_tokens=max_tokens, spans=SPANS, cards=cards)


def _figures(reply: Preview) -> list[_Figure]:
    """The pictures up to the reply, and its context."""
    turns = reply.sample.turns[: reply.turn + 1]
    indices = {picture for turn in turns for picture in turn.pictures} | {reply.view.context}
    figures = []
    for index in sorted(index for index in indices if index is not None):
        role = "target" if index == reply.target else "context" if index == reply.view.context else "picture"
        figures.append(_figure(reply.sample.images[index], index, role))
    return figures


def _figure(image: Image, index: int, role: str) -> _Figure:
    height, width = image.pixels.shape[:2]
    longest = max(height, width)
    scale = _THUMBNAIL / 2 / longest if longest <= _SMALL else min(1.0, _THUMBNAIL / longest)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    original = image.original_size if all(image.original_size) else (height, width)
    sizes = f"{width} × {height}" + (f" of {original[1]} × {original[0]}" if original != (height, width) else "")
    uri = _data_uri(image, wide, high)
    return _Figure(role, index + 1, image.caption, sizes, wide, high, scale > 1, _square(width, height), uri)


def _square(width: int, height: int) -> str:
    """CSS position of the central square within the picture; empty if it is the whole picture."""
    if width == height:
        return ""
    side = min(width, height)
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    return f"left:{left:.2%};top:{top:.2%};width:{side / width:.2%};height:{side / height:.2%}"


def _data_uri(image: Image, width: int, height: int) -> str:
    from PIL import Image as Pillow

    picture = Pillow.fromarray(image.pixels)
    small = max(picture.size) <= _SMALL
    if not small:
        picture = picture.resize((width, height), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    form = "PNG" if small else "JPEG"
    picture.save(buffer, format=form, **({} if small else {"quality": 85}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
