"""LAION's lists: parquet files of URL, caption and scores, whose columns have changed their names over the years."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.downloads import Downloads
from m2chat.data.converters.drafts import Draft, Drafts, Job, Reject, existing
from m2chat.data.converters.phrases import caption_draft
from m2chat.data.sources import one_line
from m2chat.errors import UserError

COLUMNS = {
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
"""Our name of a column, and the names that it has had, in small letters."""
_COMMAND = (
    "--url_col URL --caption_col TEXT "
    """--save_additional_columns '["similarity","hash","punsafe","pwatermark","aesthetic"]'"""
)


def drafts(job: Job) -> Drafts:
    """A caption pair for every row whose picture was downloaded and is beautiful enough."""
    files = sorted(job.src.glob("*.parquet")) if job.src.is_dir() else [existing(job.src, "SRC", "it is the .parquet")]
    if not files:
        raise UserError(f"SRC: {job.src} holds no .parquet; give the folder or the file of LAION's list")
    with Downloads(job, _COMMAND) as downloads:
        first = 0
        for path in files:
            for offset, row in enumerate(_rows(path, job.min_aesthetic is not None)):
                yield _pair(job, downloads, first + offset, row)
                last = first + offset + 1
            first = last


def _pair(job: Job, downloads: Downloads, number: int, row: dict[str, Any]) -> Draft | Reject:
    name = f"{number:09d}"
    url, caption = one_line(row.pop("url")), one_line(row.pop("caption"))
    if not url or not caption:
        return Reject(name, "no caption" if url else "no url")
    if job.min_aesthetic is not None and not row.get("aesthetic", -math.inf) >= job.min_aesthetic:
        return Reject(name, f"aesthetic score below {job.min_aesthetic:g}")
    picture = downloads.find(number, url, caption)
    if picture is None:
        return Reject(name, "picture missing")
    return caption_draft(name, picture, job.form, {"url": url, **row})


def _rows(path: Path, needs_score: bool) -> Iterator[dict[str, Any]]:
    """Rows under our names; what is not known is left out."""
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"SRC: {path} is broken or no parquet ({error}); download it again") from error
    with file:
        names = file.schema_arrow.names
        own = {key: _column(names, aliases) for key, aliases in COLUMNS.items()}
        required = ("url", "caption", *(("aesthetic",) if needs_score else ()))
        for key in required:
            if own[key] is None:
                raise UserError(
                    f"SRC: {path} has no column for the {key}: it has {', '.join(names)}, and "
                    f"{' or '.join(COLUMNS[key])} would do; rename it"
                    + ("" if key in ("url", "caption") else ", or leave out --min-aesthetic")
                )
        wanted = {name: key for key, name in own.items() if name is not None}
        for batch in file.iter_batches(1000, columns=list(wanted)):
            for row in batch.to_pylist():
                known = {wanted[name]: value for name, value in row.items() if _says_something(value)}
                yield {"url": None, "caption": None, **known}


def _column(names: list[str], aliases: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[alias] for alias in aliases if alias in lower), None)


def _says_something(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
