"""A folder of pictures with a table of captions, by the imagefolder convention of Hugging Face."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Broken, lines
from m2chat.data.converters.raw import MAX_FILE, Job, RawSamples, Reject, caption_pair, file_in, no_caption
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.textfiles import NOT_UTF8, open_utf8

_CAPTION = ("caption", "text")


def samples(job: Job) -> RawSamples:
    """A caption pair for every row of the table."""
    for number, row in enumerate(_rows(job)):
        if not isinstance(row, dict):
            yield Reject(str(number), row.reason if isinstance(row, Broken) else "row is not an object")
            continue
        file = row.get("file_name")
        caption = next(filter(None, (one_line(row.get(key)) for key in _CAPTION)), "")
        if not isinstance(file, str) or not file:
            yield Reject(str(number), "no file_name")
        elif not caption:
            yield Reject(file, no_caption(next((row[key] for key in _CAPTION if row.get(key) is not None), None)))
        else:
            picture = file_in(job.images or job.src, file, caption=caption, caption_by="human", media_key=file)
            rest = {key: value for key, value in row.items() if key not in ("file_name", *_CAPTION) and key}
            yield caption_pair(file, picture, job.form, rest)


def _rows(job: Job) -> Iterator[Any]:
    if (path := job.src / "metadata.jsonl").is_file():
        yield from lines(path, job.encoding)
    elif (path := job.src / "metadata.csv").is_file():
        yield from _csv_rows(path, job.encoding)
    else:
        raise UserError(
            f"SRC: {job.src} holds neither metadata.jsonl nor metadata.csv: write one with file_name and caption a row"
        )


def _csv_rows(path: Path, encoding: str) -> Iterator[Any]:
    # The module's limit is 128 KiB a field, which the text of a page exceeds; it is the same for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FILE))
    with io.TextIOWrapper(open_utf8(path, encoding), "utf-8", errors="surrogateescape", newline="") as file:
        table = csv.DictReader(file)
        try:
            _require_columns(path, table.fieldnames or ())
            for row in table:
                yield Broken(NOT_UTF8) if any(_has_bytes(value) for value in row.values()) else row
        except csv.Error as error:
            raise UserError(f"{path}:{table.line_num} is no row of a CSV ({error}); mend or drop it") from error


def _require_columns(path: Path, names: Any) -> None:
    """Checks the first row.

    Raises:
        UserError: If it does not name the columns; with the separator, if it is another one.
    """
    names = [str(name) for name in names]
    if "file_name" in names and any(name in names for name in _CAPTION):
        return
    for separator, word in ((";", "semicolons"), ("\t", "tabulators"), ("|", "bars")):
        if any("file_name" in name.split(separator) for name in names):
            raise UserError(f"{path} separates its columns by {word}: separate them by commas")
    raise UserError(
        f"{path} has the columns {', '.join(names) or 'none'}: its first row has to name file_name, and caption or text"
    )


def _has_bytes(value: Any) -> bool:
    """Whether a cell holds bytes that are not UTF-8."""
    return isinstance(value, str) and any("\udc80" <= letter <= "\udcff" for letter in value)
