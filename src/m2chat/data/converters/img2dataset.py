"""Shards of img2dataset: the same pairs in the schema ``m2c/1``; failed downloads are among the rejects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m2chat.data.converters.raw import Job, PictureFile, RawSample, RawSamples, Reject, caption_pair
from m2chat.data.converters.tables import columns_of, rows_of
from m2chat.data.shards import Entry, local_shards, open_shard
from m2chat.data.sources import BadSample, json_of, one_line, pair_facts, pair_picture
from m2chat.textfiles import is_utf8


def samples(job: Job) -> RawSamples:
    """A caption pair for every key."""
    for path in local_shards(job.src, "SRC"):
        shard = open_shard(path)
        with path.open("rb") as file:
            for entry in shard.entries:
                small = {}
                for suffix, offset, size in entry.members:
                    if suffix in ("json", "txt"):
                        file.seek(offset)
                        small[suffix] = file.read(size)
                yield _pair(job, path, entry, small)
        yield from _failures(path)


def _pair(job: Job, path: Path, entry: Entry, small: dict[str, bytes]) -> RawSample | Reject:
    places = {suffix: (offset, size) for suffix, offset, size in entry.members}
    try:
        place = places[pair_picture(places)]
        record = json_of(small)
        if not is_utf8(small.get("txt", b"")):
            if not one_line(record.get("caption")):
                return Reject(entry.key, "caption is not UTF-8")
            del small["txt"]  # the JSON repeats it, with all its letters
        caption, size = pair_facts(small, record)
    except BadSample as error:
        return Reject(entry.key, error.reason)
    # img2dataset neither applies nor keeps the EXIF orientation, so its pixels are taken as they are.
    picture = PictureFile(str(path), *place, caption=caption, caption_by="alt-text", original_size=size)
    known = {key: value for key, value in record.items() if key not in ("caption", "sha256", "status", "error_message")}
    return caption_pair(entry.key, picture, job.form, known)


def _failures(path: Path) -> Iterator[Reject]:
    """The rows of the table beside a shard that have no picture."""
    table = path.with_suffix(".parquet")
    if not table.is_file():
        return
    if {"key", "status"} <= set(columns_of(table)):
        for row in rows_of(table, ["key", "status"]):
            if row["status"] != "success":
                yield Reject(str(row["key"]), str(row["status"]).replace("_", " "))
