"""`m2chat data convert`: makes shards of what people have."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "images": (("--images",), {"type": Path, "metavar": "DIR", "help": "folder of the pictures"}),
    "captions": (
        ("--captions",),
        {"type": Path, "metavar": "FILE", "help": 'missing captions: lines of {"media_key": "...", "caption": "..."}'},
    ),
    "text_as_caption": (
        ("--text-as-caption",),
        {"action": "store_true", "help": "a picture without a caption gets the words said beside it"},
    ),
    "split": (("--split",), {"default": "", "help": "which part, as its files are called (train, val2014, ...)"}),
    "form": (
        ("--as",),
        {
            "dest": "form",
            "choices": ["caption", "instruct"],
            "default": "caption",
            "help": "what pairs become: instruct asks for the picture in many words (default: %(default)s)",
        },
    ),
    "min_aesthetic": (
        ("--min-aesthetic",),
        {"type": float, "metavar": "SCORE", "help": "leave out pictures whose aesthetic score is lower or unknown"},
    ),
    "sample": (
        ("--sample",),
        {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "choose N pictures by seed (30000 is the usual evaluation)",
        },
    ),
    "seed": (("--seed",), {"type": int, "default": 0, "help": "of the choice (default: %(default)s)"}),
}


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action, with a parser for each format so that its help shows what applies to it."""
    from m2chat.data.converters.registry import FORMATS

    parser = actions.add_parser(
        "convert", help="make shards of CC3M, LAION, COCO, MMDialog, VIST, your own folder, ..."
    )
    formats = parser.add_subparsers(title="formats", metavar="KIND", dest="format", required=True)
    for name, form in FORMATS.items():
        own = formats.add_parser(name, help=form.summary, description=form.summary)
        own.add_argument("src", type=Path, metavar="SRC", help=form.reads)
        own.add_argument("dst", type=Path, metavar="DST", help="folder for the shards; a half done conversion goes on")
        for option in form.options:
            flags, settings = _OPTIONS[option]
            own.add_argument(*flags, **settings)
        default = form.source or "SRC's name"
        own.add_argument("--name", default=form.source, help=f"name of the data set (default: {default})")
        own.add_argument("--license", default=form.license, help="terms, kept in every sample")
        own.add_argument(
            "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all)"
        )
        own.add_argument("--per-shard", type=int, default=1000, metavar="N", help="samples (default: %(default)s)")
        own.add_argument(
            "--min-side", type=int, default=32, metavar="N", help="least side of a picture (default: %(default)s)"
        )
        own.add_argument("--limit", type=int, default=0, metavar="N", help="stop after N records")
        own.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Converts, and says what became of it.

    Raises:
        UserError: If a number makes no sense, the raw data are not there or the folder holds something else.
    """
    from m2chat.data.converters.engine import convert
    from m2chat.data.converters.raw import Job
    from m2chat.errors import UserError

    for setting, least in (("workers", 1), ("per_shard", 1), ("min_side", 1), ("limit", 0), ("sample", 0)):
        if getattr(options, setting, least) < least:
            flag = setting.replace("_", "-")
            raise UserError(f"--{flag} {getattr(options, setting)}: give a number of at least {least}")
    settings = {key: value for key, value in vars(options).items() if key != "run"}
    # Shards are called after the data set, and the part of a file's name before its first dot is the sample.
    settings["name"] = (
        re.sub(r"[^\w-]+", "-", settings["name"] or options.src.absolute().name.partition(".")[0]) or "own"
    )
    report(convert(Job(**settings)), options.dst)


def report(index: dict[str, Any], folder: Path) -> None:
    """Prints what an index says."""
    kinds = ", ".join(f"{count} x {kind}" for kind, count in index["kinds"].items()) or "nothing"
    print(f"{folder}: {len(index['shards'])} shards, {kinds}, {index['pictures']} pictures")
    for reason, count in sorted(index["rejects"].items(), key=lambda item: -item[1]):
        print(f"  rejected: {count:8} x {reason}")
    if index["rejects"]:
        print(f"  each of them is listed in {folder / 'rejects.jsonl'}")
    if index["uncaptioned"]:
        print(f"  {index['uncaptioned']} pictures have no caption: `m2chat data caption {folder} DST` writes them")
