"""`m2chat measure`: how well a model converses in a generated world, by the judge of that world."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

from m2chat.commands.arguments import existing, in_range, new_file
from m2chat.commands.common import load_pipeline
from m2chat.commands.options import add_model_options
from m2chat.files import write_whole


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("measure", help="measure a model's conversations with the judge")
    parser.add_argument("--world", default="shapes", help="generated world to converse in (default: %(default)s)")
    parser.add_argument("--count", type=in_range("count"), default=200, help="conversations (default: %(default)s)")
    parser.add_argument(
        "--wishes", type=in_range("number"), default=20, help="vague wishes, four seeds each (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=in_range("number"), default=1, help="of conversations and pictures (default: %(default)s)"
    )
    parser.add_argument("--steps", type=in_range("steps"), help="denoising steps (default: those of --preset, or 25)")
    parser.add_argument(
        "--batch-size", type=in_range("batch_size"), default=50, metavar="N", help="replies at once (%(default)s)"
    )
    parser.add_argument(
        "--captions", choices=("model", "data"), default="model",
        help="who says what a shown picture shows: the model, as in a chat, or the data (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument(
        "--into", type=existing("file"), metavar="FILE",
        help="document whose tables between the marks 'measure' are replaced too, such as docs/pocket.md",
    )  # fmt: skip
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measures, prints a table, writes the file."""
    from m2chat.evaluation.markup import aligned, write_section
    from m2chat.evaluation.results import plain
    from m2chat.shipped import MODELS
    from m2chat.world import find_world

    world = find_world(options.world, "--world")
    trained_in = {model.world: name for name, model in MODELS.items()}
    pipe = load_pipeline(options, trained_in.get(options.world))
    rows = world.measure(
        pipe,
        count=options.count,
        wishes=options.wishes,
        seed=options.seed,
        steps=options.steps or pipe.draw_settings().steps,
        batch_size=options.batch_size,
        model_captions=options.captions == "model",
    )
    about = f"Weights: {pipe.origin.path}; {options.count} held-out conversations; captions by {options.captions}"
    tables = [aligned(_lines(list(table))) for _, table in itertools.groupby(rows, key=lambda row: next(iter(row)))]
    print(about, *tables, sep="\n")
    if options.into is not None:
        write_section(options.into, "\n\n".join([*tables, about]) + "\n", "measure")
    if options.out is not None:
        settings = {key: str(value) for key, value in vars(options).items() if key != "run"}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = plain({"settings": settings, "rows": rows})
        write_whole(options.out, [json.dumps(record, indent=1, allow_nan=False), "\n"])


def _lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A table's header and its lines: rates with their intervals, or the numbers that a world adds, as they are."""
    if "percent" not in rows[0]:
        return [tuple(rows[0]), *(tuple(str(row.get(name, "")) for name in rows[0]) for row in rows)]
    by_pixels = any("by_pixels" in row for row in rows)
    header = ("measure", "%", "95 % interval", "n", "must reach", "holds", *(["% by pixels"] if by_pixels else []))
    lines = [
        (
            row["measure"], f"{row['percent']:.1f}", f"{row['low']:.1f} ... {row['high']:.1f}", str(row["n"]),
            "" if row["bar"] is None else f"{row['bar']:.1f}",
            "" if row["holds"] is None else ("yes" if row["holds"] else "NO"),
            *([str(row.get("by_pixels", ""))] if by_pixels else []),
        )
        for row in rows
    ]  # fmt: skip
    return [header, *lines]
