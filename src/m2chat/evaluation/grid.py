"""Pictures side by side, for people to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from m2chat.evaluation.targets import targets_of
from m2chat.metrics.encoders import Picture
from m2chat.schema import Prediction, Reply

GAP = 4
"""Pixels between cells."""
_BLANK = 200
_PAPER = 255


def _cell(picture: Picture | None, size: int) -> Picture:
    """A square of one picture: small ones keep their pixels visible, a missing one is grey."""
    if picture is None:
        return np.full((size, size, 3), _BLANK, np.uint8)
    nearest = max(picture.shape[:2]) <= size
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((size, size), method))


def grid(rows: Sequence[Sequence[Picture | None]], size: int = 128) -> Picture:
    """Lays pictures out in rows and columns.

    Args:
        rows: Pictures of each row, equally many; None leaves a grey cell.
        size: Width and height of a cell, in pixels.

    Returns:
        One picture, (rows * (size + gap) + gap, columns * (size + gap) + gap, 3).
    """
    height, width = len(rows), len(rows[0])
    step = size + GAP
    canvas = np.full((height * step + GAP, width * step + GAP, 3), _PAPER, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = GAP + i * step, GAP + j * step
            canvas[y : y + size, x : x + size] = _cell(picture, size)
    return canvas


def comparison(predictions: Iterable[Prediction], size: int = 128) -> Picture | None:
    """A row ``context | generated | truth`` for every picture that a reply should hold; None if none should."""
    rows = [(item.context, target.generated, target.truth) for item in predictions for target in targets_of(item)]
    return grid(rows, size) if rows else None


def _words(reply: Reply) -> str:
    parts = []
    for segment, image in zip(reply.segments, reply.images, strict=True):
        drawn = (
            ""
            if segment.caption is None
            else f" [{'picture' if image is not None else 'no picture'}: {segment.caption}]"
        )
        parts.append(segment.answer + drawn)
    return " ".join(parts).replace("|", "\\|").replace("\n", " ").strip()


def conversation_table(predictions: Iterable[Prediction]) -> str:
    """A markdown table of requests, generated replies and true ones."""
    lines = ["| kind | request | generated | truth |", "|---|---|---|---|"]
    for item in predictions:
        request = item.request.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {item.kind} | {request} | {_words(item.generated)} | {_words(item.reference)} |")
    return "\n".join(lines)
