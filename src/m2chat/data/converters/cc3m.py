"""CC3M's list: a caption and a URL a row, without a header as it comes, with one as img2dataset wants it."""

from __future__ import annotations

from collections.abc import Iterator

from m2chat.data.converters.downloads import Downloads
from m2chat.data.converters.drafts import Drafts, Job, Reject, existing
from m2chat.data.converters.phrases import caption_draft
from m2chat.data.sources import one_line

_URL = ("url", "image", "path")
_CAPTION = ("caption", "text")


def drafts(job: Job) -> Drafts:
    """A caption pair for every row whose picture was downloaded."""
    existing(job.src, "SRC", "it is the .tsv of captions and URLs")
    with Downloads(job, "--url_col url --caption_col caption") as downloads:
        for row, caption, url in _rows(job):
            name = f"{row:09d}"
            if url is None:
                yield Reject(name, "row without two columns")
            elif not caption:
                yield Reject(name, "no caption")
            elif (picture := downloads.find(row, url, caption)) is None:
                yield Reject(name, "picture missing")
            else:
                yield caption_draft(name, picture, job.form, {"url": url})


def _rows(job: Job) -> Iterator[tuple[int, str, str | None]]:
    """Number, caption and URL of each row, counted from 0 behind the header."""
    order = (0, 1)
    row = -1
    # Not csv: captions hold quotation marks that quote nothing.
    with job.src.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            cells = [one_line(cell) for cell in line.lstrip("\ufeff").split("\t")]
            lower = [cell.lower() for cell in cells]
            if row < 0 and len(cells) > 1 and set(lower) & set(_URL) and set(lower) & set(_CAPTION):
                order = (_first(lower, _CAPTION), _first(lower, _URL))
                continue
            row += 1
            if len(cells) <= max(order):
                yield row, "", None
            else:
                yield row, cells[order[0]], cells[order[1]]


def _first(cells: list[str], names: tuple[str, ...]) -> int:
    return next(index for index, cell in enumerate(cells) if cell in names)
