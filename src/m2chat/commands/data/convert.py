"""`m2chat data convert`: makes shards from other formats."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from m2chat.commands.arguments import existing, in_range, new_folder


def _pictures(text: str) -> Path:
    return existing("folder", "name the folder of the pictures")(text)


def _captions(text: str) -> Path:
    return existing("file")(text)


_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "images": ("--images", dict(type=_pictures, metavar="DIR", help="folder of the pictures")),
    "captions": ("--captions", dict(type=_captions, metavar="FILE", help="missing captions: lines of "
                 '{"media_key": "...", "caption": "..."}')),
    "text_as_caption": ("--text-as-caption", dict(action="store_true", help="a picture without a caption gets the text "
                        "of its turn")),
    "split": ("--split", dict(default="", help="part of the data set, as its files are named (train, val2014, ...)")),
    "form": ("--as", dict(dest="form", choices=["caption", "instruct"], default="caption", help="kind that pairs "
             "become; instruct varies the request (default: %(default)s)")),
    "min_aesthetic": ("--min-aesthetic", dict(type=in_range("score"), metavar="SCORE",
                      help="leave out pictures whose aesthetic "
                      "score is lower or unknown")),
    "sample": ("--sample", dict(type=in_range("number"), default=0, metavar="N",
               help="choose N pictures by seed (30000 is the usual "
               "evaluation)")),
    "encoding": ("--encoding", dict(default="", metavar="NAME", help="of text files without a byte order mark "
                 "(default: UTF-8)")),
    "columns": ("--columns", dict(default="", metavar="ROLE=COLUMN,...", help="columns of other names: image, caption, "
                "or source, target, instruction, source_caption, target_caption; also id, session, turn")),
    "rows_from": ("--rows-from", dict(type=int, choices=[0, 1], help="number of the first row, if pictures are named "
                  "by rows (default: what their numbers show)")),
    "seed": ("--seed", dict(type=in_range("seed"), default=0, help="seed of the choice (default: %(default)s)")),
}  # fmt: skip
"""Flag and argparse settings of what only some formats have."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action, with a parser for each format so that its help shows what applies to it."""
    from m2chat.data.converters.registry import FORMATS

    parser = actions.add_parser(
        "convert", help="make shards of CC3M, LAION, COCO, MMDialog, VIST, a folder of pictures, ..."
    )
    formats = parser.add_subparsers(title="formats", metavar="KIND", dest="format", required=True)
    for name, form in FORMATS.items():
        command = formats.add_parser(name, help=form.summary, description=form.summary)
        command.add_argument("src", type=existing(remedy="name the raw data"), metavar="SRC", help=form.reads)
        command.add_argument(
            "dst", type=new_folder, metavar="DST", help="folder for the shards; a half done conversion goes on"
        )
        for option in form.options:
            flag, settings = _OPTIONS[option]
            command.add_argument(flag, **settings)
        default = form.source or "SRC's name"
        command.add_argument("--name", default=form.source, help=f"name of the data set (default: {default})")
        command.add_argument("--license", default=form.license, help="terms, kept in every sample")
        command.add_argument(
            "--workers",
            type=in_range("workers"),
            default=os.cpu_count() or 1,
            metavar="N",
            help="processes (default: all)",
        )
        command.add_argument(
            "--per-shard", type=in_range("count"), default=1000, metavar="N", help="samples (default: %(default)s)"
        )
        command.add_argument(
            "--min-side",
            type=in_range("side"),
            default=32,
            metavar="N",
            help="least side of a picture (default: %(default)s)",
        )
        command.add_argument(
            "--max-rejects",
            type=in_range("share"),
            default=0.5,
            metavar="SHARE",
            help="largest share of records that may become no sample (default: %(default)s)",
        )
        command.add_argument("--limit", type=in_range("number"), default=0, metavar="N", help="stop after N records")
        command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Converts, and prints the counts.

    Raises:
        UserError: If the raw data are not there, give nothing or too little, or the folder
            holds something else.
    """
    from m2chat.data.converters.engine import convert
    from m2chat.data.converters.raw import Job
    from m2chat.textfiles import checked_encoding

    if name := getattr(options, "encoding", ""):
        checked_encoding(name)
    settings = {key: value for key, value in vars(options).items() if key != "run"}
    # Shards are named after the data set; WebDataset readers take a name up to its first dot.
    settings["name"] = (
        re.sub(r"[^\w-]+", "-", settings["name"] or options.src.absolute().name.partition(".")[0]) or "own"
    )
    report(convert(Job(**settings)), options.dst)


def report(index: dict[str, Any], folder: Path) -> None:
    """Prints the counts of an index."""
    kinds = ", ".join(f"{count} x {kind}" for kind, count in index["kinds"].items()) or "nothing"
    print(f"{folder}: {len(index['shards'])} shards, {kinds}, {index['pictures']} pictures")
    for reason, count in sorted(index["rejects"].items(), key=lambda item: -item[1]):
        print(f"  rejected: {count:8} x {reason}")
    if index["rejects"]:
        print(f"  each of them is listed in {folder / 'rejects.jsonl'}")
    if index["uncaptioned"]:
        print(f"  {index['uncaptioned']} pictures have no caption: `m2chat data caption {folder} DST` writes them")
