"""A folder of pictures with a table of captions, by the imagefolder convention of Hugging Face."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import lines
from m2chat.data.converters.raw import Job, PictureFile, RawSamples, Reject, caption_pair, inside
from m2chat.data.sources import one_line
from m2chat.errors import UserError

_CAPTION = ("caption", "text")


def samples(job: Job) -> RawSamples:
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
            picture = PictureFile(inside(job.src, file), caption=caption, caption_by="human", media_key=file)
            rest = {key: value for key, value in row.items() if key not in ("file_name", *_CAPTION) and key}
            yield caption_pair(file, picture, job.form, rest)


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
