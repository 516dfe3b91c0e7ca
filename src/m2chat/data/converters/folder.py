"""Your own pictures, by the imagefolder convention of Hugging Face: a table of files and what they show."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.drafts import Drafts, Job, Picture, Reject, inside
from m2chat.data.converters.jsonfiles import lines
from m2chat.data.converters.phrases import caption_draft
from m2chat.data.sources import one_line
from m2chat.errors import UserError

_CAPTION = ("caption", "text")


def drafts(job: Job) -> Drafts:
    """A caption pair for every row of the table."""
    for number, row in enumerate(_rows(job.src)):
        if not isinstance(row, dict):
            yield Reject(str(number), "broken json")
            continue
        file = row.get("file_name")
        caption = next(filter(None, (one_line(row.get(key)) for key in _CAPTION)), "")
        if not isinstance(file, str) or not file:
            yield Reject(str(number), "no file_name")
        elif not caption:
            yield Reject(file, "no caption")
        else:
            picture = Picture(inside(job.src, file), caption=caption, caption_by="human", media_key=file)
            rest = {key: value for key, value in row.items() if key not in ("file_name", *_CAPTION) and key}
            yield caption_draft(file, picture, job.form, rest)


def _rows(folder: Path) -> Iterator[Any]:
    if (path := folder / "metadata.jsonl").is_file():
        yield from lines(path)
    elif (path := folder / "metadata.csv").is_file():
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            yield from csv.DictReader(file)
    else:
        raise UserError(
            f"SRC: {folder} holds neither metadata.jsonl nor metadata.csv: write one with file_name and caption a row"
        )
