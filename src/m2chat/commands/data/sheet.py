"""A page of samples as the model sees them: one file, no request to anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from m2chat.commands.data.seen import SPANS, Piece, Seen
from m2chat.schema import Image

_THUMBNAIL = 240
"""Longer side of a picture on the page, in pixels."""
_SMALL = 64
"""Pictures up to this side are shown larger and with hard pixels, and kept without loss."""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --edge: #8886; --soft: #8882; }
body { margin: 0 auto; max-width: 110rem; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
header p, .facts { margin: 0 0 .5rem; opacity: .75; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: 0 0 1rem; padding: 0; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }
article { border: 1px solid var(--edge); border-radius: .5rem; padding: .75rem; min-width: 0; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.facts { font-size: .85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0 0 .75rem; }
figure { margin: 0; max-width: 100%; }
.frame { position: relative; display: inline-block; line-height: 0; border: 3px solid var(--edge); }
.context .frame { border-color: #2a78c8; }
.target .frame { border-color: #c22f6d; }
.frame img { max-width: 100%; height: auto; }
.hard { image-rendering: pixelated; }
.seen { position: absolute; border: 2px dashed #fff; outline: 1px dashed #000; box-sizing: border-box; }
figcaption { font-size: .85rem; max-width: 15rem; overflow-wrap: anywhere; }
figcaption b { text-transform: uppercase; font-size: .7rem; letter-spacing: .05em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: .25rem; padding: .5rem;
  max-height: 48rem; overflow-y: auto; }
.text span, .legend span { border-radius: .2rem; padding: 0 .15rem; }
.prompt { opacity: .8; }
.answer { background: #bfe8c4; color: #063; }
.caption { background: #f7c6da; color: #601; }
.image { background: #e2cdf7; color: #406; }
.other { background: #cfe0f5; color: #036; }
.mark { background: #f4e3a1; color: #440; }
.cut { background: #f9d0c4; color: #a10; text-decoration: line-through; }
.scored { border-bottom: 2px solid currentColor; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$facts</p>
<ul class="legend">$legend</ul>
</header>
<main>
$cards
</main>
</body>
</html>
""")


def contact_sheet(replies: Sequence[Seen], title: str, max_tokens: int) -> str:
    """The page.

    Args:
        replies: What to show, a card each.
        title: Where they come from.
        max_tokens: Longest sequence.

    Returns:
        HTML. Pictures are within it, and all words of the data are escaped.
    """
    legend = "".join(f'<li><span class="{span}">{span}</span> {escape(text)}</li>' for span, text in SPANS.items())
    legend += '<li><span class="scored">underlined</span> what the language loss scores</li>'
    legend += "<li>dashed: the square that the model gets of a picture</li>"
    return _PAGE.substitute(
        title=escape(title),
        facts=f"{len(replies)} replies, at most {max_tokens} tokens each",
        legend=legend,
        cards="\n".join(_card(reply) for reply in replies),
    )


def _card(reply: Seen) -> str:
    sample = reply.sample
    shown = dict.fromkeys(picture for turn in sample.turns[: reply.turn + 1] for picture in turn.pictures)
    if reply.view.context is not None:
        shown.setdefault(reply.view.context)
    pictures = "".join(_figure(sample.images[index], index, _role(reply, index)) for index in sorted(shown))
    cut = f", <b>{reply.cut} cut</b>" if reply.cut else ""
    return (
        f"<article><h2>{escape(sample.id)}</h2>"
        f'<p class="facts">{escape(sample.kind)} of {escape(sample.source)}, turn {reply.turn}, '
        f"{reply.tokens} tokens{cut}</p>"
        f'<div class="pictures">{pictures}</div>'
        f'<div class="text">{_spans(reply.pieces)}</div></article>'
    )


def _role(reply: Seen, index: int) -> str:
    if index == reply.target:
        return "target"
    return "context" if index == reply.view.context else "picture"


def _spans(pieces: Iterable[Piece]) -> str:
    return "".join(
        f'<span class="{piece.span}{" scored" if piece.scored else ""}" title="{piece.span}'
        f'{", scored" if piece.scored else ""}">{escape(piece.text)}</span>'
        for piece in pieces
    )


def _figure(image: Image, index: int, role: str) -> str:
    height, width = image.pixels.shape[:2]
    longest = max(height, width)
    scale = _THUMBNAIL / 2 / longest if longest <= _SMALL else min(1.0, _THUMBNAIL / longest)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    caption = escape(image.caption) or "<i>no caption</i>"
    original = image.original_size if all(image.original_size) else (height, width)
    sizes = f"{width} × {height}" + (f" of {original[1]} × {original[0]}" if original != (height, width) else "")
    return (
        f'<figure class="{role}"><div class="frame"><img src="{_data_uri(image, wide, high)}" width="{wide}" '
        f'height="{high}" alt="{escape(image.caption)}"{" class=hard" if scale > 1 else ""}>{_square(width, height)}'
        f"</div><figcaption><b>{role} {index + 1}</b> {sizes}<br>{caption}</figcaption></figure>"
    )


def _square(width: int, height: int) -> str:
    """The central square as a frame over the picture; nothing if it is the whole picture."""
    if width == height:
        return ""
    side = min(width, height)
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    place = f"left:{left:.2%};top:{top:.2%};width:{side / width:.2%};height:{side / height:.2%}"
    return f'<span class="seen" style="{place}"></span>'


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
