"""The pictures that were downloaded from a list of URLs, joined to its rows where that is certain."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Lookup
from m2chat.data.converters.raw import Job, PictureFile, existing, file_in
from m2chat.data.shards import open_shard
from m2chat.data.sources import PICTURES
from m2chat.errors import UserError

_RESIZE = "--image_size 256 --resize_mode keep_ratio --resize_only_if_bigger True"
"""img2dataset's default, ``border``, would teach the model white bars."""
_FROM_ZERO = re.compile(r"GCC_(train|val)_\d{9}")
"""Names of CC3M's pictures as LLaVA hands them out: their numbers are rows counted from 0."""


@dataclass(frozen=True)
class Rows:
    """The rows of a list, as far as the numbers of pictures can be theirs.

    Args:
        count: Number of rows, all of them counted.
        doubt: Number of rows in another way of counting: smaller numbers of pictures fit that way, too. 0 if there is
            no other way.
        why: What is counted in one way and not in the other, for the error.
    """

    count: int
    doubt: int = 0
    why: str = ""


class Downloads(Lookup):
    """The pictures under ``--images``.

    Three arrangements are understood: img2dataset's (shards, or files with a ``.json`` each; joined by the URL in
    their JSON), files whose name ends in the row's number (``GCC_train_000000012.jpg``), and lists with paths in place
    of URLs. Numbers count only where no picture has a URL, and where it is certain from which row they start.

    Args:
        job: Conversion.
        columns: Options of img2dataset that name the list's columns, for the error.
        rows: Gives the rows of the list; asked only if pictures are joined by row.

    Raises:
        UserError: If the conversion names no folder of pictures, with the command that downloads them.
    """

    def __init__(self, job: Job, columns: str, rows: Callable[[], Rows]) -> None:
        if job.images is None:
            raise UserError(_how_to_download(job, columns))
        self.folder = existing(job.images, "--images", "it is the folder of the downloaded pictures")
        self._job, self._rows = job, rows
        self._numbers, self._urls = _Numbers(), 0
        super().__init__(job.work / "downloads.sqlite", self._counted(_pictures(self.folder)))

    def _counted(self, places: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for key, place in places:
            kind, _, rest = key.partition(" ")
            if kind == "url":
                self._urls += 1
            else:
                self._numbers.add(int(rest), Path(place[0]).stem)
            yield key, place

    @property
    def _by_row(self) -> bool:
        return self._numbers.count > 0 and not self._urls

    @cached_property
    def _first_row(self) -> int:
        """The number of the first row; asked only once a row is to be joined by it."""
        if self.conflicts:
            raise UserError(
                f"--images {self.folder}: {self.conflicts} numbers of files occur twice, the first is "
                f"{self.conflict.removeprefix('row ')}: which of them is the row's picture is not certain"
            )
        return self._numbers.first(self.folder, self._rows(), self._job.rows_from)

    def find(self, row: int, url: str, caption: str) -> PictureFile | None:
        """The picture of a row of the list, None if it was not downloaded.

        Args:
            row: Number of the row, from 0.
            url: URL, or path below the folder.
            caption: Caption.

        Raises:
            UserError: If it is to be joined by row, and the numbers of pictures fit the list in no way, or in two.
        """
        if "://" not in url:
            return file_in(self.folder, url, caption=caption, caption_by="alt-text", media_key=url)
        match = self.get(f"url {url}")
        if match is None and self._by_row:
            match = self.get(f"row {row + self._first_row}")
        if match is None:
            return None
        path, offset, length, height, width = match
        size = (height, width) if height and width else None
        return PictureFile(path, offset, length, caption, "alt-text", url, size)


class _Numbers:
    """The numbers at the end of pictures' names."""

    def __init__(self) -> None:
        self.count = 0
        self._low, self._high = 0, 0
        self._known = True
        self._before: set[str] = set()

    def add(self, number: int, stem: str) -> None:
        """Takes the number of one more picture."""
        self._low = min(self._low, number) if self.count else number
        self._high = max(self._high, number)
        self._known &= _FROM_ZERO.fullmatch(stem) is not None
        if len(self._before) < 2:  # more would not be named
            self._before.add(stem.rstrip("0123456789"))
        self.count += 1

    def first(self, folder: Path, rows: Rows, wished: int | None) -> int:
        """The number of the first row.

        Args:
            folder: Folder of the pictures, for the error.
            rows: Rows of the list.
            wished: What the user says; None if nothing.

        Raises:
            UserError: If it is not certain.
        """
        facts = f"--images {folder}: the names of {self.count} pictures end in the numbers {self._low} to {self._high}"
        remedy = (
            "pictures that img2dataset leaves are joined by URL; if the numbers are rows, say from which they count, "
            "--rows-from 0 or --rows-from 1"
        )
        listed = f"and the list has {rows.count} rows"
        if wished is None and len(self._before) > 1:
            one, other = sorted(self._before)
            raise UserError(
                f"{facts} behind different beginnings ({one!r}, {other!r}), so they may be no rows: {remedy}"
            )
        starts = (wished,) if wished is not None else (0,) if self._known else (0, 1)
        if any(start <= self._low and self._high < rows.doubt + start for start in starts):
            raise UserError(f"{facts}, {listed}, which fits more than one way of counting: {rows.why}")
        if wished is not None:
            return wished
        fits = [start for start in starts if start <= self._low and self._high < rows.count + start]
        if len(fits) != 1:
            why = "which fits rows that count from 0 and from 1" if fits else "which fits no way of counting"
            raise UserError(f"{facts}, {listed}, {why}: {remedy}")
        return fits[0]


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
