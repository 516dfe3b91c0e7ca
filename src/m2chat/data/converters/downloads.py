"""Pictures that somebody has downloaded from a list of URLs, found again by URL, by row or by path."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.data.converters.drafts import Job, Picture, existing, inside
from m2chat.data.converters.lookup import Lookup
from m2chat.data.shards import open_shard
from m2chat.data.sources import PICTURES
from m2chat.errors import UserError

_RESIZE = "--image_size 256 --resize_mode keep_ratio --resize_only_if_bigger True"
"""Its default, ``border``, would teach the model white bars."""


class Downloads(Lookup):
    """The pictures under ``--images``.

    They lie there as img2dataset leaves them (shards, or files with a ``.json`` each; joined by the URL that their JSON
    tells), as files whose name ends in the row's number (``GCC_train_000000012.jpg``), or where the list says if its
    URLs are paths.
    """

    def __init__(self, job: Job, columns: str) -> None:
        if job.images is None:
            raise UserError(_how_to_download(job, columns))
        self.folder = existing(job.images, "--images", "it is the folder of the downloaded pictures")
        super().__init__(job.work / "downloads.sqlite", _found(self.folder))

    def find(self, row: int, url: str, caption: str) -> Picture | None:
        """The picture of a row of the list, None if it was not downloaded."""
        if "://" not in url:
            return Picture(inside(self.folder, url), caption=caption, caption_by="alt-text", media_key=url)
        found = self.get(f"url {url}") or self.get(f"row {row}")
        if found is None:
            return None
        path, offset, length, height, width = found
        size = (height, width) if height and width else None
        return Picture(path, offset, length, caption, "alt-text", url, size)


def _how_to_download(job: Job, columns: str) -> str:
    src, dst = shlex.quote(str(job.src)), shlex.quote(str(job.dst))
    kind = "tsv" if job.format == "cc3m-tsv" else "parquet"
    header = "\n  sed -i '1s/^/caption\\turl\\n/' " + src if kind == "tsv" else ""
    note = " (the first line only if the list has no header yet)" if header else ""
    return (
        f"--images is missing: {job.format} is a list of URLs, and this command downloads nothing. In an environment "
        f"of its own, img2dataset does{note}:{header}\n"
        f"  img2dataset --url_list {src} --input_format {kind} {columns} \\\n"
        f"    --output_format webdataset --output_folder downloaded {_RESIZE}\n"
        f"then: m2chat data convert {job.format} {src} {dst} --images downloaded"
    )


def _found(folder: Path) -> Iterator[tuple[str, Any]]:
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
                yield from _row(str(path), *place, file.read(size))


def _in_file(path: Path) -> Iterator[tuple[str, Any]]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        yield from _row(str(path), 0, None, beside.read_bytes())
        return
    digits = path.stem[len(path.stem.rstrip("0123456789")) :]
    if digits:
        yield f"row {int(digits)}", (str(path), 0, None, 0, 0)


def _row(path: str, offset: int, length: int | None, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        record = json.loads(data)
        size = [int(record.get(f"original_{side}") or 0) for side in ("height", "width")]
        yield f"url {record['url'].strip()}", (path, offset, length, *size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # What does not say where it comes from cannot be joined: its row is rejected.
