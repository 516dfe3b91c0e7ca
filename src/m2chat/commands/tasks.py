"""`m2chat draw`, `wish`, `edit`, `similar`, `story` and `dialogue`: the paper's tasks from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2chat.commands.arguments import existing, in_range, words
from m2chat.commands.common import load_pipeline, read_picture, show, watching
from m2chat.commands.options import add_drawing_options, add_model_options, how_to_draw
from m2chat.errors import UserError

OUT = "m2chat_pictures"
PICTURE = "name a JPEG, PNG, WebP or GIF file"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the commands."""
    draw = commands.add_parser("draw", help="text-to-image: draw a caption as it is")
    draw.add_argument("prompt", type=words, help="such as 'a small red ring on a white background'")
    draw.add_argument("--seeds", type=in_range("seed"), nargs="+", default=[0], help="one picture each (default: 0)")
    wish = commands.add_parser("wish", help="chat-based generation: draw a vague wish, by default four times")
    wish.add_argument("prompt", type=words, help="such as 'I dream of a ball like the sea in front of snow'")
    wish.add_argument(
        "--seeds", type=in_range("seed"), nargs="+", default=[0, 1, 2, 3], help="one picture each (default: 0 1 2 3)"
    )
    wish.add_argument(
        "--candidates", type=in_range("candidates"), default=2, metavar="N",
        help="pictures drawn per seed, of which the one most like its caption is kept (default: %(default)s)",
    )  # fmt: skip
    edit = commands.add_parser("edit", help="multi-round editing: change a picture, one instruction after another")
    edit.add_argument("picture", type=existing("file", PICTURE), help="a picture file")
    edit.add_argument("instructions", nargs="+", help="such as 'paint it red' 'move it to the left'")
    similar = commands.add_parser("similar", help="draw pictures similar to one")
    similar.add_argument("picture", type=existing("file", PICTURE), help="a picture file")
    similar.add_argument(
        "--seeds", type=in_range("seed"), nargs="+", default=[0, 1, 2], help="one picture each (default: 0 1 2)"
    )
    story = commands.add_parser("story", help="storytelling from a first line, compared with the image decoder alone")
    story.add_argument(
        "opener",
        type=words,
        help="such as 'tell me of the magic of a small green circle on the left on a purple background'",
    )
    story.add_argument("--frames", type=in_range("frames"), default=4, help="number of parts (default: %(default)s)")
    dialogue = commands.add_parser("dialogue", help="multimodal dialogue: reply to messages, one after another")
    dialogue.add_argument("lines", nargs="+", type=words, help="messages; PATH::TEXT sends a picture with a text")
    runs = {"draw": _draw, "wish": _wish, "edit": _edit, "similar": _similar, "story": _story, "dialogue": _dialogue}
    for name, parser in (("draw", draw), ("wish", wish), ("edit", edit), ("similar", similar), ("story", story),
                         ("dialogue", dialogue)):  # fmt: skip
        if name in ("edit", "story", "dialogue"):
            parser.add_argument(
                "--seed", type=in_range("seed"), default=0, help="seed of every reply (default: %(default)s)"
            )
        add_drawing_options(parser, OUT)
        add_model_options(parser)
        parser.set_defaults(run=runs[name])


def _draw(options: argparse.Namespace) -> None:
    pipe = load_pipeline(options)
    from m2chat.pipeline.tasks import text_to_image

    with watching(pipe):
        outputs = text_to_image(pipe, options.prompt, options.seeds, **how_to_draw(options))
    show(outputs, options.out, "draw")


def _wish(options: argparse.Namespace) -> None:
    pipe = load_pipeline(options)
    from m2chat.pipeline.tasks import wish

    with watching(pipe):
        outputs = wish(pipe, options.prompt, options.seeds, candidates=options.candidates, **how_to_draw(options))
    show(outputs, options.out, "wish")


def _edit(options: argparse.Namespace) -> None:
    if not any(line.strip() for line in options.instructions):
        raise UserError("instructions: all of them are empty: name a change, such as 'paint it red'")
    picture = read_picture(options.picture)
    pipe = load_pipeline(options)
    from m2chat.pipeline.tasks import edit

    with watching(pipe):
        outputs = edit(pipe, picture, options.instructions, options.seed, **how_to_draw(options))
    show(outputs, options.out, "edit", picture)


def _similar(options: argparse.Namespace) -> None:
    picture = read_picture(options.picture)
    pipe = load_pipeline(options)
    from m2chat.pipeline.tasks import similar

    with watching(pipe):
        outputs = similar(pipe, picture, options.seeds, **how_to_draw(options))
    show(outputs, options.out, "similar", picture)


def _story(options: argparse.Namespace) -> None:
    import numpy as np

    from m2chat.data.images import save_png
    from m2chat.evaluation.grid import grid
    from m2chat.files import write_whole
    from m2chat.pipeline.tasks import story

    pipe = load_pipeline(options)
    with watching(pipe):
        result = story(pipe, options.opener, options.frames, options.seed, **how_to_draw(options))
    stem = show(result.parts, options.out, "story")
    ours = [np.asarray(image) for part in result.parts for image in part.images]
    path = options.out / f"{stem}-beside-decoder.png"
    write_whole(path, save_png(grid([ours, result.decoder_alone])))
    print(f"Above ours, below the image decoder alone with the same captions at one seed: {path}")


def _dialogue(options: argparse.Namespace) -> None:
    lines: list[Any] = []
    for line in options.lines:
        path, mark, text = line.partition("::")
        lines.append((text, read_picture(Path(path))) if mark else line)
    pipe = load_pipeline(options)
    from m2chat.pipeline.tasks import dialogue

    with watching(pipe):
        outputs = dialogue(pipe, lines, options.seed, **how_to_draw(options))
    show(outputs, options.out, "dialogue")
