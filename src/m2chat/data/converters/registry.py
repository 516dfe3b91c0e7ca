"""The formats that can be converted, with their options; light, so that ``--help`` costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A format of raw data.

    Args:
        summary: One line for ``--help``.
        reads: What SRC is.
        code: Module of this package and its function that yields drafts.
        options: Options beyond those that every format has.
        source: Name of the data set unless told otherwise.
        license: Its terms, where they are the same for all of it and known.
        lists: Module and function that give side files once all shards are written; empty for none.
    """

    summary: str
    reads: str
    code: str
    options: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    lists: str = ""

    def drafts(self) -> Callable[..., Any]:
        """The function that yields drafts."""
        return load(self.code)


def load(code: str) -> Callable[..., Any]:
    """A function of this package, named as ``module:function``."""
    module, _, function = code.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return found


_TALK = ("images", "captions", "text_as_caption")
_NON_COMMERCIAL = "non-commercial academic use, no redistribution"

FORMATS: dict[str, Format] = {
    "img2dataset": Format(
        "shards of img2dataset (training also reads them in place)",
        "a .tar, a folder of them or a pattern",
        "img2dataset:drafts",
        ("form",),
    ),
    "cc3m-tsv": Format(
        "CC3M's list of captions and URLs, with downloaded pictures",
        "the .tsv",
        "cc3m:drafts",
        ("images", "form"),
        "cc3m",
    ),
    "laion-parquet": Format(
        "LAION's lists of URLs, with downloaded pictures",
        "a .parquet or a folder of them",
        "laion:drafts",
        ("images", "form", "min_aesthetic"),
        "laion",
    ),
    "coco-captions": Format(
        "COCO 2014 captions; writes captions.jsonl too, the list of what was chosen",
        "the folder with annotations/",
        "coco:drafts",
        ("images", "split", "form", "sample", "seed"),
        "coco",
        lists="coco:lists",
    ),
    "mmdialog": Format(
        "MMDialog as its authors hand it out",
        "a split's folder or its conversations.json",
        "mmdialog:drafts",
        _TALK,
        "mmdialog",
        _NON_COMMERCIAL,
    ),
    "mmdialog-captioned": Format(
        "pairs of MMDialog rounds with captions, a JSON list",
        "the .json",
        "mmdialog:captioned",
        _TALK,
        "mmdialog",
        _NON_COMMERCIAL,
    ),
    "vist": Format(
        "VIST stories (SIS), captioned by its descriptions (DII) if they are there",
        "the folder with sis/",
        "vist:drafts",
        (*_TALK, "split"),
        "vist",
    ),
    "vist-cleaned": Format(
        "VIST stories as <split>_cleaned.json and <split>_image_mapping.json",
        "the folder with both files",
        "vist:cleaned",
        (*_TALK, "split"),
        "vist",
    ),
    "instructpix2pix": Format(
        "InstructPix2Pix edits",
        "the folder with seeds.json",
        "instructpix2pix:drafts",
        (),
        "instructpix2pix",
    ),
    "magicbrush": Format(
        "MagicBrush editing sessions",
        "the folder with edit_sessions.json",
        "magicbrush:drafts",
        ("images", "captions"),
        "magicbrush",
        "CC-BY-4.0",
    ),
    "llava": Format(
        "LLaVA's visual instructions",
        "the .json",
        "llava:drafts",
        ("images", "captions"),
        "llava",
    ),
    "alpaca": Format("instructions and answers in text alone", "the .json", "alpaca:drafts", (), "alpaca"),
    "folder": Format(
        "your own pictures with metadata.jsonl or metadata.csv (file_name, text or caption)",
        "the folder",
        "folder:drafts",
        ("form",),
    ),
}
