"""Draws conversations as one picture: ``python -m m2chat.evaluation.figure RUN OUT.png``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from m2chat.evaluation.results import PREDICTIONS

_PICTURE, _WIDTH, _LINE, _MARGIN = 112, 860, 20, 12
_INK, _SOFT, _PAPER = (30, 30, 30), (130, 130, 130), (255, 255, 255)


def conversation_rows(path: Path, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Replies that call for a picture and got one, of different conversations, in the order of the file."""
    rows, seen = [], set()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        conversation = row["id"].split("#")[0]
        due = any(segment["image"] for segment in row["reference"])
        if due and conversation not in seen and any(segment["image"] for segment in row["generated"]):
            seen.add(conversation)
            rows.append(row)
    return rows[start : start + count]


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> Image.Image:
    """One row a reply: what the user said and showed, what the model answered and drew."""
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    height = _PICTURE + 2 * _MARGIN
    canvas = Image.new("RGB", (_WIDTH, height * len(rows)), _PAPER)
    pen = ImageDraw.Draw(canvas)

    def paste(name: str | None, x: int, y: int) -> None:
        if name:
            picture = Image.open(folder / name).convert("RGB")
            canvas.paste(picture.resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST), (x, y))

    for index, row in enumerate(rows):
        y = index * height + _MARGIN
        paste(row["context"], _MARGIN, y)
        left = _MARGIN + _PICTURE + 16
        segment = next(item for item in row["generated"] if item["image"])
        pen.text((left, y + 4), "You", _SOFT, small)
        pen.text((left, y + _LINE), row["request"], _INK, font)
        pen.text((left, y + 3 * _LINE - 2), "M2Chat", _SOFT, small)
        pen.text((left, y + 4 * _LINE - 6), segment["answer"] or "(draws)", _INK, font)
        pen.text((left, y + 5 * _LINE - 4), f"caption: {segment['caption']}", _SOFT, small)
        paste(segment["image"], _WIDTH - _PICTURE - _MARGIN, y)
        pen.line((0, (index + 1) * height - 1, _WIDTH, (index + 1) * height - 1), fill=(225, 225, 225))
    return canvas


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a `lightning test` run")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--count", type=int, default=4, help="conversations to show")
    parser.add_argument("--start", type=int, default=0, help="conversations to pass over")
    options = parser.parse_args(argv)
    rows = conversation_rows(options.run / PREDICTIONS, options.count, options.start)
    picture = draw(rows, options.run)
    Image.fromarray(np.asarray(picture)).save(options.out, optimize=True)
    print(f"{len(rows)} conversations in {options.out}")


if __name__ == "__main__":
    main()
