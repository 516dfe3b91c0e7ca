"""Lists of URLs and captions (CC3M's and LAION's), joined with the pictures that img2dataset downloaded from them."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Lookup
from m2chat.data.converters.raw import Job, PictureFile, RawSample, RawSamples, Reject, caption_pair, existing, inside
from m2chat.data.shards import open_shard
from m2chat.data.sources import PICTURES, one_line
from m2chat.errors import UserError

_RESIZE = "--image_size 256 --resize_mode keep_ratio --resize_only_if_bigger True"
"""img2dataset's default, ``border``, would teach the model white bars."""
_URL = ("url", "image", "path")
_CAPTION = ("caption", "text")
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


class Downloads(Lookup):
    """The pictures under ``--images``.

    Three arrangements are understood: img2dataset's (shards, or files with a ``.json`` each; joined by the URL in
    their JSON), files whose name ends in the row's number (``GCC_train_000000012.jpg``), and lists with paths in place
    of URLs.

    Args:
        job: Conversion.
        columns: Options of img2dataset that name the list's columns, for the error.

    Raises:
        UserError: If the conversion names no folder of pictures; with the command that downloads them.
    """

    def __init__(self, job: Job, columns: str) -> None:
        if job.images is None:
            raise UserError(_how_to_download(job, columns))
        self.folder = existing(job.images, "--images", "it is the folder of the downloaded pictures")
        super().__init__(job.work / "downloads.sqlite", _pictures(self.folder))

    def find(self, row: int, url: str, caption: str) -> PictureFile | None:
        """The picture of a row of the list, None if it was not downloaded."""
        if "://" not in url:
            return PictureFile(inside(self.folder, url), caption=caption, caption_by="alt-text", media_key=url)
        match = self.get(f"url {url}") or self.get(f"row {row}")
        if match is None:
            return None
        path, offset, length, height, width = match
        size = (height, width) if height and width else None
        return PictureFile(path, offset, length, caption, "alt-text", url, size)


def _how_to_download(job: Job, columns: str) -> str:
    src, dst = shlex.quote(str(job.src)), shlex.quote(str(job.dst))
    kind = "tsv" if job.format == "cc3m-tsv" else "parquet"
    header = "\n  sed -i '1s/^/caption\\turl\\n/' " + src if kind == "tsv" else ""
    note = " (the first line only if the list has no header yet)" if header else ""
    return (
        f"--images is missing: {job.format} is a list of URLs, and this command downloads nothing. In an environment "
        f"for it alone, img2dataset does{note}:{header}\n"
        f"  img2dataset --url_list {src} --input_format {kind} {columns} \\\n"
        f"    --output_format webdataset --output_folder downloaded {_RESIZE}\n"
        f"then: m2chat data convert {job.format} {src} {dst} --images downloaded"
    )


def _pictures(folder: Path) -> Iterator[tuple[str, Any]]:
    """Key (URL or row number) and place of each picture of a folder, subfolders included."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            suffix = path.suffix[1:].lower()
            if suffix == "tar":
                yield from _in_shard(path)
            elif suffix in (*PICTURES, "gif"):
                yield from _in_file(path)


def _in_shard(path: Path) -> Iterator[tuple[str, Any]]:
    shard = open_shard(path)
    with path.open("rb") as file:
        for entry in shard.entries:
            places = {suffix: (offset, size) for suffix, offset, size in entry.members}
            place = next((places[suffix] for suffix in PICTURES if suffix in places), None)
            if place is not None and "json" in places:
                offset, size = places["json"]
                file.seek(offset)
                yield from _join_key(str(path), *place, file.read(size))


def _in_file(path: Path) -> Iterator[tuple[str, Any]]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        yield from _join_key(str(path), 0, None, beside.read_bytes())
        return
    digits = path.stem[len(path.stem.rstrip("0123456789")) :]
    if digits:
        yield f"row {int(digits)}", (str(path), 0, None, 0, 0)


def _join_key(path: str, offset: int, length: int | None, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        record = json.loads(data)
        size = [int(record.get(f"original_{side}") or 0) for side in ("height", "width")]
        yield f"url {record['url'].strip()}", (path, offset, length, *size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # A picture of unknown URL cannot be joined: its row is rejected.


def cc3m(job: Job) -> RawSamples:
    """A caption pair for every row whose picture was downloaded."""
    existing(job.src, "SRC", "it is the .tsv of captions and URLs")
    with Downloads(job, "--url_col url --caption_col caption") as downloads:
        for row, caption, url in _cc3m_rows(job):
            name = f"{row:09d}"
            if url is None:
                yield Reject(name, "row without two columns")
            elif not caption:
                yield Reject(name, "no caption")
            elif (picture := downloads.find(row, url, caption)) is None:
                yield Reject(name, "picture missing")
            else:
                yield caption_pair(name, picture, job.form, {"url": url})


def _cc3m_rows(job: Job) -> Iterator[tuple[int, str, str | None]]:
    """Number, caption and URL of each row, counted from 0 behind the header."""
    order = (0, 1)
    row = -1
    # Not the csv module: captions hold unbalanced quotation marks.
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


def laion(job: Job) -> RawSamples:
    """A caption pair for every row whose picture was downloaded and whose aesthetic score is high enough."""
    files = sorted(job.src.glob("*.parquet")) if job.src.is_dir() else [existing(job.src, "SRC", "it is the .parquet")]
    if not files:
        raise UserError(f"SRC: {job.src} holds no .parquet; give the folder or the file of LAION's list")
    with Downloads(job, _LAION_OPTIONS) as downloads:
        rows = (row for path in files for row in _laion_rows(path, job.min_aesthetic is not None))
        for number, row in enumerate(rows):  # Rows are counted over all files.
            yield _laion_pair(job, downloads, number, row)


def _laion_pair(job: Job, downloads: Downloads, number: int, row: dict[str, Any]) -> RawSample | Reject:
    name = f"{number:09d}"
    url, caption = one_line(row.pop("url")), one_line(row.pop("caption"))
    if not url or not caption:
        return Reject(name, "no caption" if url else "no url")
    if job.min_aesthetic is not None and not row.get("aesthetic", -math.inf) >= job.min_aesthetic:
        return Reject(name, f"aesthetic score below {job.min_aesthetic:g}")
    picture = downloads.find(number, url, caption)
    if picture is None:
        return Reject(name, "picture missing")
    return caption_pair(name, picture, job.form, {"url": url, **row})


def _laion_rows(path: Path, needs_score: bool) -> Iterator[dict[str, Any]]:
    """Rows by the names of `LAION_COLUMNS`; empty cells are left out."""
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise UserError(f"SRC: {path} is broken or no parquet ({error}); download it again") from error
    with file:
        names = file.schema_arrow.names
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
        for batch in file.iter_batches(1000, columns=list(wanted)):
            for row in batch.to_pylist():
                known = {wanted[name]: value for name, value in row.items() if not _is_empty(value)}
                yield {"url": None, "caption": None, **known}


def _column(names: list[str], aliases: tuple[str, ...]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[alias] for alias in aliases if alias in lower), None)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
