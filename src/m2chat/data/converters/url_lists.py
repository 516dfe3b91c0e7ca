"""Lists of URLs and captions (CC3M's and LAION's), joined with the pictures that img2dataset downloaded from them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from m2chat.data.converters.downloads import Downloads, Rows
from m2chat.data.converters.raw import Job, RawSample, RawSamples, Reject, caption_pair, existing, file_in, no_caption
from m2chat.data.converters.tables import columns_of, count_of, rows_of
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.files import by_number
from m2chat.textfiles import NOT_UTF8, is_utf8, lines_of

_URL = ("url", "image_url", "image", "path", "filepath", "file_path", "file_name", "filename", "image_path")
_CAPTION = ("caption", "text", "title")
LAION_COLUMNS = {
    "url": ("url", "image_url"),
    "caption": ("text", "caption", "top_caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "similarity": ("similarity",),
    "punsafe": ("punsafe", "unsafe"),
    "pwatermark": ("pwatermark", "watermark"),
    "hash": ("hash",),
}
"""Name of a column in `meta`, and the names that it has had in LAION's releases, in small letters."""
_LAION_OPTIONS = (
    "--url_col URL --caption_col TEXT "
    """--save_additional_columns '["similarity","hash","punsafe","pwatermark","aesthetic"]'"""
)


_HEAD = 1000
"""Lines of a list in which its first rows are looked for."""
_NOT_THERE = "no picture of this URL or row under --images"


def cc3m(job: Job) -> RawSamples:
    """A caption pair for every row whose picture was downloaded."""
    existing(job.src, "SRC", "it is the .tsv of captions and URLs")
    skipped, order = _cc3m_header(job)
    with Downloads(job, "--url_col url --caption_col caption", lambda: _cc3m_count(job, skipped, order)) as downloads:
        for row, cells in _cc3m_rows(job, skipped, order):
            name = f"{row:09d}"
            if isinstance(cells, str):
                yield Reject(name, cells)
                continue
            caption, url = cells
            if not caption:
                yield Reject(name, "no caption")
            elif (picture := downloads.find(row, url, caption)) is None:
                yield Reject(name, _NOT_THERE)
            else:
                yield caption_pair(name, picture, job.form, {"url": url})


def _cc3m_header(job: Job) -> tuple[int, tuple[int, int]]:
    """Number of lines before the first row, and the places of caption and URL in a row.

    A header is the first line that has columns; blank lines and comments may stand before it.

    Raises:
        UserError: If the first line may be a header of unknown names, or the columns stand in another order.
    """
    first = enumerate(islice(lines_of(job.src, job.encoding), _HEAD))
    split = ((number, [one_line(cell) for cell in _text(line).split("\t")]) for number, line in first)
    lines = list(islice(((number, cells) for number, cells in split if len(cells) > 1), 2))
    head = [cells for _, cells in lines]
    if not head:
        return 0, (0, 1)
    lower = [cell.lower() for cell in head[0]]
    if set(lower) & set(_URL) and set(lower) & set(_CAPTION):
        return lines[0][0] + 1, (_first(lower, _CAPTION), _first(lower, _URL))
    names = f"caption ({', '.join(_CAPTION)}) and URL or path ({', '.join(_URL)})"
    rest = head[-1]
    if not _is_place(job, head[0][1]) and _is_place(job, head[0][0]):
        raise UserError(f"SRC: {job.src}: the first column holds the places: put a header before it that names {names}")
    if not _is_place(job, head[0][1]) and any(_is_place(job, cell) for cell in rest):
        raise UserError(
            f"SRC: {job.src} begins with {', '.join(head[0])}, which looks like a header of other names: name the "
            f"columns {names}"
        )
    return 0, (0, 1)


def _is_place(job: Job, cell: str) -> bool:
    """Whether a cell is a URL, or the path of a picture under ``--images``."""
    if "://" in cell or job.images is None:
        return "://" in cell
    path = file_in(job.images, cell).path
    return bool(path) and os.path.isfile(path)


def _cc3m_count(job: Job, skipped: int, order: tuple[int, int]) -> Rows:
    """The rows of the list: only those with a URL are joined by number.

    Lines without one before the last of them may count as rows or not, each for itself, as who wrote the list or
    downloaded from it has read them.
    """
    last, count, urls, first_odd = 0, 0, 0, -1
    for row, line in enumerate(islice(lines_of(job.src, job.encoding), skipped, None)):
        cells = line.split(b"\t")
        if len(cells) > max(order):
            count = row + 1
        if len(cells) > max(order) and b"://" in cells[order[1]]:
            last, urls = row + 1, urls + 1
        elif first_odd < 0:
            first_odd = row
    odd = last - urls
    if not odd:
        return Rows(count)
    return Rows(
        count,
        last - 1,
        f"{urls} rows have a URL, and {odd} other lines stand among or before them, the first is line "
        f"{first_odd + skipped + 1}: whether they count as rows is not certain; mend or drop them",
    )


def _cc3m_rows(job: Job, skipped: int, order: tuple[int, int]) -> Iterator[tuple[int, tuple[str, str] | str]]:
    """Number of each row, counted from 0 behind the header, and its caption and URL or what is wrong with it."""
    # Not the csv module: captions hold unbalanced quotation marks.
    for row, line in enumerate(islice(lines_of(job.src, job.encoding), skipped, None)):
        cells = line.split(b"\t")
        if len(cells) <= max(order):
            yield row, "row without two columns"
        elif not all(is_utf8(cells[place]) for place in order):
            yield row, NOT_UTF8
        else:
            yield row, (one_line(_text(cells[order[0]])), one_line(_text(cells[order[1]])))


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")


def _first(cells: list[str], names: tuple[str, ...]) -> int:
    return next(index for index, cell in enumerate(cells) if cell in names)


def laion(job: Job) -> RawSamples:
    """A caption pair for every row whose picture was downloaded and whose aesthetic score is high enough."""
    found = job.src.glob("*.parquet") if job.src.is_dir() else [existing(job.src, "SRC", "it is the .parquet")]
    files = sorted(found, key=by_number)
    if not files:
        raise UserError(f"SRC: {job.src} holds no .parquet; give the folder or the file of LAION's list")
    with Downloads(job, _LAION_OPTIONS, lambda: _laion_count(files)) as downloads:
        rows = (row for path in files for row in _laion_rows(path, job.min_aesthetic is not None))
        for number, row in enumerate(rows):  # Rows are counted over all files.
            yield _laion_pair(job, downloads, number, row)


def _laion_count(files: Sequence[Path]) -> Rows:
    """The rows of the files: they are numbered over all of them, and could be within each."""
    counts = [count for path in files if (count := count_of([path]))]
    if len(counts) < 2:
        return Rows(sum(counts))
    return Rows(
        sum(counts),
        max(counts),
        f"over all of the {len(counts)} files, or within each, of which the longest has {max(counts)} rows; convert "
        "each file with its pictures by itself",
    )


def _laion_pair(job: Job, downloads: Downloads, number: int, row: dict[str, Any]) -> RawSample | Reject:
    name = f"{number:09d}"
    url, text = one_line(row.pop("url")), row.pop("caption")
    caption = one_line(text)
    if not url or not caption:
        return Reject(name, no_caption(text) if url else "no url")
    if job.min_aesthetic is not None:
        try:
            score = float(row.get("aesthetic", -math.inf))  # some releases hold it as text
        except (TypeError, ValueError):
            return Reject(name, "aesthetic score is no number")
        row |= {"aesthetic": score} if "aesthetic" in row else {}
        if not score >= job.min_aesthetic:
            return Reject(name, f"aesthetic score below {job.min_aesthetic:g}")
    picture = downloads.find(number, url, caption)
    if picture is None:
        return Reject(name, _NOT_THERE)
    return caption_pair(name, picture, job.form, {"url": url, **row})


def _laion_rows(path: Path, needs_score: bool) -> Iterator[dict[str, Any]]:
    """Rows by the names of `LAION_COLUMNS`; empty cells are left out, and files without rows passed over."""
    if not count_of([path]):
        return
    names = columns_of(path)
    columns = {key: _column(names, aliases) for key, aliases in LAION_COLUMNS.items()}
    required = ("url", "caption", *(("aesthetic",) if needs_score else ()))
    for key in required:
        if columns[key] is None:
            raise UserError(
                f"SRC: {path} has no column for the {key}: it has {', '.join(names)}, and "
                f"{' or '.join(LAION_COLUMNS[key])} would do; rename it"
                + ("" if key in ("url", "caption") else ", or leave out --min-aesthetic")
            )
    wanted = {name: key for key, name in columns.items() if name is not None}
    for row in rows_of(path, list(wanted)):
        known = {wanted[name]: value for name, value in row.items() if not _is_empty(value)}
        yield {"url": None, "caption": None, **known}


def _column(names: list[str], aliases: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[alias] for alias in aliases if alias in lower), None)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
