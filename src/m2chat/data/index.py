"""The index of a shard: where its samples lie, what they teach and which of them are bad.

It is made once, by reading every sample as training would, and kept. So any sample can be read alone and in any order,
and the bad ones are known before the order is made: none takes a place in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from m2chat.data.entries import Entries, Entry
from m2chat.data.remote import CACHE, Url, opened, read_range, stamp
from m2chat.data.sources import BadSample, outline, sample_of
from m2chat.files import write_whole
from m2chat.schema import Kind, Sample
from m2chat.text.view import view_of

log = logging.getLogger(__name__)

SUFFIXES = ("json", "txt", "jpg", "jpeg", "png", "webp", "gif")
"""Files that are read at all. Nothing here is ever unpickled, executed or written to disk by its name."""
MAX_MEMBER = 64 * 2**20
"""Longest file that is read, in bytes."""
UNKNOWN = "unknown"
"""Kind of a sample whose JSON is broken."""
_MAX_SPAN = 4 * MAX_MEMBER
_TOO_LARGE = f"file of more than {MAX_MEMBER // 2**20} MiB"
_VERSION = 3
_PICTURE = 64
"""What a picture of the reply adds to the length of a sequence, in bytes of text."""


@dataclass(frozen=True)
class Shard:
    """A tar and where its samples lie.

    Args:
        path: The tar, or its address.
        entries: Its samples, in their order, the bad ones too.
        skipped: How many files were left out, by reason.
    """

    path: str
    entries: Entries
    skipped: dict[str, int] = field(default_factory=dict)

    def members(self, index: int) -> dict[str, bytes]:
        """The files of one sample, suffix to bytes.

        Raises:
            BadSample: If the tar is shorter than it was when it was indexed, or a file is too large.
            OSError: If it cannot be read.
        """
        places = self.entries[index].members
        start, stop = _span(places)
        if "://" in self.path:
            data = read_range(Url(self.path), start, stop)
        else:
            with open(self.path, "rb", buffering=0) as file:  # One read; a buffer would only cost.
                file.seek(start)
                data = file.read(stop - start)
        if len(data) != stop - start:
            raise BadSample("shard ends early")
        return {suffix: data[offset - start : offset - start + size] for suffix, offset, size in places}


def open_shards(places: Sequence[Path | Url], cache: str | Path = CACHE, threads: int = 1) -> list[Shard]:
    """The indices of some tars, in their order.

    Args:
        places: The tars.
        cache: Where an index is kept that cannot stand beside its tar.
        threads: How many tars are read at once, where there is no index yet; decoders run side by side.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(lambda place: open_shard(place, cache), places))


def open_shard(place: Path | Url, cache: str | Path = CACHE) -> Shard:
    """The index of a tar: the one that is kept if it still fits, else a new one.

    It is kept beside the tar as ``<tar>.idx.json``, or in `cache` if the tar is remote or its folder not writable.
    A damaged tar is not an error: what can be read before the damage is kept, the rest is counted in `skipped`.

    Args:
        place: The tar.
        cache: Where an index is kept that cannot stand beside its tar.

    Raises:
        UserError: If a remote tar cannot be reached.
    """
    if isinstance(place, Path):
        stat = place.stat()
        now: dict[str, Any] = {"version": _VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        homes = [place.with_name(place.name + ".idx.json")]
    else:
        now, homes = {"version": _VERSION, **stamp(place, "path")}, []
    whole_name = str(place.absolute() if isinstance(place, Path) else place)
    homes.append(
        Path(cache).expanduser() / "index" / f"{hashlib.sha256(whole_name.encode()).hexdigest()[:24]}.idx.json"
    )
    for home in homes:
        with suppress(OSError, ValueError, KeyError, TypeError):  # Whatever is wrong with it, a new one is made.
            head, _, lines = home.read_bytes().partition(b"\n")
            saved = json.loads(head)
            if saved["stamp"] == now and saved["digest"] == hashlib.sha256(lines).hexdigest():
                return Shard(str(place), Entries(lines), saved["skipped"])
    shard = _index(place)
    faults = Counter(shard.skipped) + Counter(entry.fault for entry in shard.entries if entry.fault)
    if faults:
        log.warning("%s: left out %s", place, ", ".join(f"{n} x {reason}" for reason, n in faults.most_common()))
    lines = shard.entries.lines
    record = {"stamp": now, "skipped": shard.skipped, "digest": hashlib.sha256(lines).hexdigest()}
    for home in homes:
        with suppress(OSError):  # Where nothing can be written, the index lives in memory only.
            if home is homes[-1]:
                home.parent.mkdir(parents=True, exist_ok=True)
            write_whole(home, json.dumps(record).encode() + b"\n" + lines)
            break
    return shard


def _index(place: Path | Url) -> Shard:
    skipped: Counter[str] = Counter()
    entries = []
    try:
        with open(place, "rb") if isinstance(place, Path) else opened(place) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            # Only neighbours form a sample: a key that comes back later is a fragment of its own, as in WebDataset.
            for key, group in groupby(_files(file, size, skipped), key=lambda found: found[0]):
                members: dict[str, tuple[str, int, int]] = {}
                for _, suffix, offset, length in group:
                    if suffix in members:
                        skipped["duplicate"] += 1
                    else:
                        members[suffix] = (suffix, offset, length)
                entries.append(_look(file, re.sub(r"[^\w-]+", "_", key).strip("_") or "_", list(members.values())))
    except OSError as error:
        skipped[f"unreadable shard ({type(error).__name__})"] += 1
    return Shard(str(place), Entries.of(entries), dict(skipped))


def _look(file: IO[bytes], key: str, places: list[tuple[str, int, int]]) -> Entry:
    """Reads a sample as training would, and says what it is or what is wrong with it."""
    kind: Kind | str = UNKNOWN
    replies, lengths = [1], []
    try:
        _span(places)
        members = {}
        for suffix, offset, size in places:
            file.seek(offset)
            members[suffix] = file.read(size)
        kind, replies = outline(members)
        sample = sample_of(members, key, "")
        lengths = [_length(sample, turn) for turn in replies]
    except BadSample as error:
        return Entry(key, kind, replies, places, [0] * len(replies), error.reason)
    return Entry(key, kind, replies, places, lengths)


def _span(places: Sequence[tuple[str, int, int]]) -> tuple[int, int]:
    """Where the files of a sample begin and end: they are neighbours, so one request brings them all.

    Raises:
        BadSample: If a file is too large, or they lie too far apart.
    """
    start = min((offset for _, offset, _ in places), default=0)
    stop = max((offset + size for _, offset, size in places), default=0)
    if any(size > MAX_MEMBER for _, _, size in places) or stop - start > _MAX_SPAN:
        raise BadSample(_TOO_LARGE)
    return start, stop


def _length(sample: Sample, turn: int) -> int:
    view = view_of(sample, turn)
    words = [view.request.instruction, *view.request.history]
    words += [part for segment in view.reply for part in (segment.answer, segment.caption or "")]
    pictures = sum(segment.caption is not None for segment in view.reply)
    return sum(len(part.encode(errors="replace")) for part in words) + _PICTURE * pictures


def _files(file: IO[bytes], size: int, skipped: Counter[str]) -> Iterator[tuple[str, str, int, int]]:
    """Key, suffix, offset and size of each file of a tar that may be read."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
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
    except (tarfile.TarError, EOFError, ValueError):
        skipped["unreadable rest of the shard"] += 1
