"""WebDataset shards on disk: finding them, an index for random access, and writing our own.

A shard is a plain tar. The index remembers where each file lies, so that any sample can be read alone and in any
order; it stands beside the tar as ``<tar>.idx.json`` where that folder is writable.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from m2chat.data.sources import BadSample, outline, to_members
from m2chat.data.tars import write_tar
from m2chat.errors import UserError
from m2chat.schema import Sample

log = logging.getLogger(__name__)

SUFFIXES = ("json", "txt", "jpg", "jpeg", "png", "webp", "gif")
"""Files that are read at all. Nothing here is ever unpickled, executed or written to disk by its name."""
MAX_MEMBER = 64 * 2**20
"""Longest file that is read, in bytes."""
_VERSION = 1
UNKNOWN = "unknown"
"""Kind of a sample whose JSON is broken; it is counted when it is read, with all other bad ones."""


@dataclass(frozen=True)
class Entry:
    """One sample of a shard.

    Args:
        key: Its name: letters, digits, ``_`` and ``-``.
        kind: What it teaches; ``unknown`` if its JSON is broken.
        replies: Indices of the turns that can be learned from or evaluated.
        members: Suffix, offset and size in bytes of each file.
    """

    key: str
    kind: str
    replies: list[int]
    members: list[tuple[str, int, int]]


@dataclass(frozen=True)
class Shard:
    """A tar and where its samples lie.

    Args:
        path: The tar.
        entries: Its samples, in their order.
        skipped: How many files were left out, by reason.
    """

    path: str
    entries: list[Entry]
    skipped: dict[str, int] = field(default_factory=dict)

    def members(self, index: int) -> dict[str, bytes]:
        """The files of one sample, suffix to bytes.

        Raises:
            BadSample: If the tar is shorter than it was when it was indexed, or a file is too large.
        """
        members = {}
        with open(self.path, "rb") as file:
            for suffix, offset, size in self.entries[index].members:
                if size > MAX_MEMBER:
                    raise BadSample(f"file of more than {MAX_MEMBER // 2**20} MiB")
                file.seek(offset)
                members[suffix] = file.read(size)
                if len(members[suffix]) != size:
                    raise BadSample("shard ends early")
        return members


def find_shards(path: str | Path, setting: str = "path") -> list[Path]:
    """The tars that a setting names, sorted.

    Args:
        path: A tar, a folder of tars, or a pattern such as ``data/cc3m/{...}*.tar`` with ``*``, ``?`` and ``[]``.
        setting: Name of the setting, for the error.

    Raises:
        UserError: If there is none.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    found = place.glob("*.tar") if place.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    shards = sorted(item for item in found if item.is_file() and item.suffix == ".tar")
    if not shards:
        fault = "is a folder without .tar files" if place.is_dir() else "names no file"
        raise UserError(
            f"{setting}={str(path)!r} {fault}: give a .tar, a folder of .tar shards or a pattern such as "
            f"'{path if place.is_dir() else place.parent}/*.tar'; `m2chat data` makes shards of other formats"
        )
    return shards


def open_shard(path: Path) -> Shard:
    """The index of a tar: the one beside it if it still fits, else a new one, kept beside it if possible.

    A damaged tar is not an error: what can be read before the damage is kept, the rest is counted in `skipped`.
    """
    stat = path.stat()
    stamp = {"version": _VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    beside = path.with_name(path.name + ".idx.json")
    with suppress(OSError, ValueError, KeyError, TypeError):  # Whatever is wrong with it, a new one is made.
        saved = json.loads(beside.read_text())
        if saved["stamp"] == stamp:
            return Shard(str(path), [_entry(row) for row in saved["entries"]], saved["skipped"])
    shard = _index(path, stat.st_size)
    if shard.skipped:
        log.warning("%s: left out %s", path, ", ".join(f"{n} x {reason}" for reason, n in shard.skipped.items()))
    record = {"stamp": stamp, "skipped": shard.skipped, "entries": [asdict(entry) for entry in shard.entries]}
    with suppress(OSError):  # A read-only data folder is usual: then the index lives in memory only.
        _write_whole(beside, json.dumps(record, separators=(",", ":")).encode())
    return shard


def _entry(row: Mapping[str, Any]) -> Entry:
    members = [(str(suffix), int(offset), int(size)) for suffix, offset, size in row["members"]]
    return Entry(str(row["key"]), str(row["kind"]), [int(turn) for turn in row["replies"]], members)


def _write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that nobody ever sees a part of it, several ranks at once included."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


def _index(path: Path, size: int) -> Shard:
    skipped: Counter[str] = Counter()
    entries = []
    with open(path, "rb") as file:
        # Only neighbours form a sample: a key that comes back later is a fragment of its own, as in WebDataset.
        for key, group in groupby(_files(path, size, skipped), key=lambda found: found[0]):
            members: dict[str, tuple[str, int, int]] = {}
            for _, suffix, offset, length in group:
                if suffix in members:
                    skipped["duplicate"] += 1
                else:
                    members[suffix] = (suffix, offset, length)
            head = {}
            if "json" in members and members["json"][2] <= MAX_MEMBER:
                file.seek(members["json"][1])
                head["json"] = file.read(members["json"][2])
            try:
                kind, replies = outline(head)
            except BadSample:
                kind, replies = UNKNOWN, [1]  # type: ignore[assignment]
            entries.append(Entry(re.sub(r"[^\w-]+", "_", key).strip("_") or "_", kind, replies, list(members.values())))
    return Shard(str(path), entries, dict(skipped))


def _files(path: Path, size: int, skipped: Counter[str]) -> Iterator[tuple[str, str, int, int]]:
    """Key, suffix, offset and size of each file of a tar that may be read."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = suffix.lower()
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    skipped["link or device"] += 1
                elif suffix.rpartition(".")[2] not in SUFFIXES:
                    skipped["unknown suffix"] += 1
                elif member.offset_data + member.size > size:
                    skipped["truncated"] += 1
                else:
                    yield f"{folder}/{stem}", suffix, member.offset_data, member.size
    except (tarfile.TarError, EOFError, OSError, ValueError):
        skipped["unreadable rest of the shard"] += 1


def write_groups(
    groups: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, prefix: str, per_shard: int
) -> list[Path]:
    """Writes samples as files; the same samples always give the same bytes.

    Args:
        groups: Key (without dots) and files (suffix to bytes) of each sample.
        folder: Made if missing.
        prefix: The shards are called ``<prefix>-000000.tar`` and so on.
        per_shard: Samples of a shard.

    Returns:
        The shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    rest = iter(groups)
    while chunk := list(islice(rest, per_shard)):
        path = folder / f"{prefix}-{len(paths):06d}.tar"
        write_tar(path, chunk)
        paths.append(path)
    return paths


def write_shards(samples: Iterable[Sample], folder: Path, prefix: str = "shard", per_shard: int = 1000) -> list[Path]:
    """Writes samples in our own schema, ``m2c/1``, their pictures as PNG.

    Args:
        samples: What to write; `Sample.id` should be unique.
        folder: Made if missing.
        prefix: The shards are called ``<prefix>-000000.tar`` and so on.
        per_shard: Samples of a shard.

    Returns:
        The shards.
    """
    groups = ((f"{index:09d}", to_members(sample)) for index, sample in enumerate(samples))
    return write_groups(groups, folder, prefix, per_shard)
