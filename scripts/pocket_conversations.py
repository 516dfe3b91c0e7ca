"""Twenty conversations with the pocket model as a stranger would type them, none selected, as pictures of a chat.

    python scripts/pocket_conversations.py                              # all of them: docs/pocket/conversations.png
    python scripts/pocket_conversations.py --numbers 1 2 3 --columns 3 --out docs/conversations.png

The lines are those of pocket_conversations.yaml; conversation N is answered with seed N, no reply is tried twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from m2chat.commands.arguments import new_file
from m2chat.commands.options import add_model_options

if TYPE_CHECKING:
    from PIL import Image

    from m2chat.pipeline import M2ChatPipeline
    from m2chat.schema import Picture
    from m2chat.worlds.emoji.scenes import Pictures

LINES = Path(__file__).with_suffix(".yaml")
OUT = Path(__file__).parents[1] / "docs/pocket/conversations.png"
WIDTH, PAD, SIDE, TEXT = 420, 12, 128, 15
"""Pixels of a column, around a message, of a picture, and of the text's size."""
COLOURS = {"user": "#d7e8ff", "assistant": "#efefef"}


@dataclass(frozen=True)
class Message:
    """A message of a conversation.

    Args:
        role: ``user`` or ``assistant``.
        parts: Texts and pictures in their order.
    """

    role: str
    parts: tuple[str | Picture, ...]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    options.add_argument("--numbers", type=int, nargs="+", help="which of them, from 1 (default: all)")
    options.add_argument("--columns", type=int, default=4, help="conversations beside each other (default: 4)")
    options.add_argument(
        "--out", type=new_file, default=OUT, help="PNG to write (default: docs/pocket/conversations.png)"
    )
    add_model_options(options)
    return options


def play(pipe: M2ChatPipeline, lines: Iterable[Any], seed: int, pictures: Pictures) -> list[Message]:
    """Has the model answer each line of a conversation."""
    import numpy as np

    session, messages = pipe.session(seed=seed), []
    for line in lines:
        say, show = line, []
        if isinstance(line, dict):
            style, concept = line["show"].split("/")
            say, show = line["say"], [pictures.find(concept, style)[1]]
        output = session.reply(say, show)
        said = tuple(part if isinstance(part, str) else np.asarray(part.image) for part in output.segments)
        messages += [Message("user", (*show, say)), Message("assistant", said)]
    return messages


def drawn(messages: Iterable[Message]) -> Image.Image:
    """A conversation as a column of messages: the user's to the right, the answers to the left."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TEXT)
    widest = WIDTH - 6 * PAD

    def wrapped(text: str) -> str:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > widest and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
        return "\n".join(lines)

    page, y = Image.new("RGB", (WIDTH, 10_000), "white"), PAD
    draw = ImageDraw.Draw(page)
    for message in messages:
        boxes: list[tuple[str | Image.Image, int, int]] = []  # of each part: what it is, its width and height
        for part in message.parts:
            if isinstance(part, str):
                text = wrapped(part)
                left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
                boxes.append((text, int(right - left) + 1, int(bottom - top) + TEXT // 2))
            else:
                boxes.append((Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.LANCZOS), SIDE, SIDE))
        width = max(box[1] for box in boxes) + 2 * PAD
        height = sum(box[2] for box in boxes) + PAD * (len(boxes) + 1)
        x = WIDTH - width - PAD if message.role == "user" else PAD
        draw.rounded_rectangle((x, y, x + width, y + height), 12, fill=COLOURS[message.role])
        inner = y + PAD
        for shown, _, high in boxes:
            if isinstance(shown, str):
                draw.multiline_text((x + PAD, inner), shown, fill="black", font=font)
            else:
                page.paste(shown, (x + PAD, inner))
            inner += high + PAD
        y += height + PAD
    return page.crop((0, 0, WIDTH, y))


def beside(columns: list[Image.Image], count: int) -> Image.Image:
    """Conversations in rows of some, each row as high as its longest."""
    from PIL import Image

    rows = [columns[k : k + count] for k in range(0, len(columns), count)]
    heights = [max(column.height for column in row) for row in rows]
    page = Image.new("RGB", (WIDTH * min(count, len(columns)), sum(heights)), "white")
    for number, row in enumerate(rows):
        for place, column in enumerate(row):
            page.paste(column, (WIDTH * place, sum(heights[:number])))
    return page


def main() -> None:
    """Plays, prints and draws the conversations."""
    options = parser().parse_args()
    from m2chat.commands.common import load_pipeline
    from m2chat.worlds.emoji.recipe.make import world_pictures

    talks = yaml.safe_load(LINES.read_text(encoding="utf-8"))
    pipe, pictures = load_pipeline(options, "pocket"), world_pictures(Path("data/pocket"))
    columns = []
    for number in options.numbers or range(1, len(talks) + 1):
        messages = play(pipe, talks[number - 1], number, pictures)
        for message in messages:
            print(number, message.role, *(part if isinstance(part, str) else "[picture]" for part in message.parts))
        columns.append(drawn(messages))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside(columns, options.columns).quantize(256).save(options.out, optimize=True)


if __name__ == "__main__":
    from m2chat.errors import UserError

    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
