"""Pictures side by side and replies as a table, for TensorBoard and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from m2chat.evaluation.targets import targets_of
from m2chat.schema import Picture, Prediction, Reply

GAP = 4
"""Pixels between cells."""
_MISSING, _BACKGROUND = 200, 255
"""Grey values of missing pictures and of the gaps."""


def _cell(picture: Picture | None, size: int) -> Picture:
    """A picture in the middle of a square as wide as its longer side.

    Small ones are enlarged without smoothing; a missing one is grey.
    """
    if picture is None:
        return np.full((size, size, 3), _MISSING, np.uint8)
    longest = max(picture.shape[:2])
    method = Image.Resampling.NEAREST if longest <= size else Image.Resampling.LANCZOS
    height, width = (max(1, round(side * size / longest)) for side in picture.shape[:2])
    cell = np.full((size, size, 3), _BACKGROUND, np.uint8)
    y, x = (size - height) // 2, (size - width) // 2
    cell[y : y + height, x : x + width] = np.asarray(Image.fromarray(picture).resize((width, height), method))
    return cell


def grid(rows: Sequence[Sequence[Picture | None]], size: int = 128) -> Picture:
    """Pictures in rows and columns as one picture.

    Args:
        rows: Rows of equally many pictures, RGB, (H, W, 3), 0-255; None gives a grey cell.
        size: Width and height of a cell, in pixels.

    Returns:
        RGB, (rows * (size + GAP) + GAP, columns * (size + GAP) + GAP, 3), 0-255.
    """
    height, width = len(rows), len(rows[0])
    step = size + GAP
    canvas = np.full((height * step + GAP, width * step + GAP, 3), _BACKGROUND, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = GAP + i * step, GAP + j * step
            canvas[y : y + size, x : x + size] = _cell(picture, size)
    return canvas


def comparison(predictions: Iterable[Prediction], size: int = 128) -> Picture | None:
    """A row ``context | generated | reference`` for every reference picture; None if there is none."""
    rows = [(item.context, target.generated, target.truth) for item in predictions for target in targets_of(item)]
    return grid(rows, size) if rows else None


def _text(reply: Reply) -> str:
    """A reply's text, captions of its pictures in brackets."""
    parts = []
    for segment, image in zip(reply.segments, reply.images, strict=True):
        parts.append(segment.answer)
        if segment.caption is not None:
            parts.append(f"[{'picture' if image is not None else 'no picture'}: {segment.caption}]")
    return _cell_text(" ".join(parts))


def _cell_text(text: str) -> str:
    """A text that cannot end its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ").strip()


def conversation_table(predictions: Iterable[Prediction]) -> str:
    """A Markdown table of requests, generated and reference replies."""
    lines = ["| kind | request | generated | reference |", "|---|---|---|---|"]
    for item in predictions:
        lines.append(
            f"| {item.kind} | {_cell_text(item.request)} | {_text(item.generated)} | {_text(item.reference)} |"
        )
    return "\n".join(lines)
