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
        summary: Line for ``--help``.
        reads: Meaning of SRC, for ``--help``.
        code: Converter, as ``module:function`` of this package; the function yields `RawSamples`.
        options: Options beyond those that every format has.
        source: Default name of the data set.
        license: Terms of the data set, where they are the same for all of it and known.
        lists: Function, likewise, that gives side files once all shards are written; empty for none.
    """

    summary: str
    reads: str
    code: str
    options: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    lists: str = ""

    def samples(self) -> Callable[..., Any]:
        """The converter."""
        return load(self.code)


def load(code: str) -> Callable[..., Any]:
    """A function of this package, named as ``module:function``."""
    module, _, function = code.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return loaded


_TALK = ("images", "captions", "text_as_caption", "encoding")
_NON_COMMERCIAL = "non-commercial academic use, no redistribution"

FORMATS: dict[str, Format] = {
    "img2dataset": Format(
        "shards of img2dataset (training also reads them in place)",
        "a .tar, a folder of them or a pattern",
        "img2dataset:samples",
        ("form",),
    ),
    "cc3m-tsv": Format(
        "CC3M's list of captions and URLs, with downloaded pictures",
        "the .tsv",
        "url_lists:cc3m",
        ("images", "form", "rows_from", "encoding"),
        "cc3m",
    ),
    "laion-parquet": Format(
        "LAION's lists of URLs, with downloaded pictures",
        "a .parquet or a folder of them",
        "url_lists:laion",
        ("images", "form", "min_aesthetic", "rows_from"),
        "laion",
    ),
    "coco-captions": Format(
        "COCO 2014 captions; writes captions.jsonl too, the list of what was chosen",
        "the folder with annotations/",
        "coco:samples",
        ("images", "split", "form", "sample", "seed", "encoding"),
        "coco",
        lists="coco:lists",
    ),
    "mmdialog": Format(
        "MMDialog as its authors hand it out",
        "a split's folder or its conversations.json",
        "mmdialog:samples",
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
        "vist:samples",
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
        "edits:instructpix2pix",
        ("encoding",),
        "instructpix2pix",
    ),
    "magicbrush": Format(
        "MagicBrush editing sessions",
        "the folder with edit_sessions.json",
        "edits:magicbrush",
        ("images", "captions", "encoding"),
        "magicbrush",
        "CC-BY-4.0",
    ),
    "llava": Format(
        "LLaVA's visual instructions",
        "the .json",
        "instructions:llava",
        ("images", "captions", "encoding"),
        "llava",
    ),
    "alpaca": Format(
        "instructions and answers in text alone", "the .json", "instructions:alpaca", ("encoding",), "alpaca"
    ),
    "parquet": Format(
        "pictures in parquet, as most sets on the Hub hold them: captions, or edits (InstructPix2Pix, MagicBrush)",
        "a .parquet or a folder of them",
        "parquet:samples",
        ("images", "columns", "split", "form"),
    ),
    "folder": Format(
        "a folder of pictures with metadata.jsonl or metadata.csv (file_name, text or caption)",
        "the folder",
        "folder:samples",
        ("images", "form", "encoding"),
    ),
}
