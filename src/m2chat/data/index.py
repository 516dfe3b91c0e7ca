"""The index of a shard: where its samples lie, what they teach and which of them are bad.

It is made once, by reading every sample as training would, and kept. So any sample can be read alone and in any order,
and the bad ones are known before the order is made: none takes a place in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import numpy as np

from m2chat.data.record import parse_json
from m2chat.data.remote import CACHE, Url, opened, read_range, stamp
from m2chat.data.sources import BadSample, outline, sample_of
from m2chat.data.tar_files import MAX_MEMBER, TOO_LARGE, clean_key, files_of
from m2chat.files import write_whole
from m2chat.schema import Kind, Sample
from m2chat.text.view import view_of

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""Kind of a sample whose JSON is broken."""
_MAX_SPAN = 4 * MAX_MEMBER
_VERSION = 3
_PICTURE = 64
"""Length that a picture of the reply adds to a sequence, in bytes of text."""


class Entry(NamedTuple):
    """One sample of a shard, as the index describes it.

    Args:
        key: Name of the sample: letters, digits, ``_`` and ``-``.
        kind: Kind of conversation; ``unknown`` if the JSON is broken.
        replies: Indices of the turns that can be learned from or evaluated.
        members: Suffix, offset and size in bytes of each file.
        lengths: Length of each reply's sequence, in bytes of text: a measure that needs no tokenizer.
        fault: Reason why the sample cannot be used; empty if it can.
    """

    key: str
    kind: str
    replies: list[int]
    members: Sequence[tuple[str, int, int]]
    lengths: Sequence[int] = ()
    fault: str = ""


class Entries(Sequence[Entry]):
    """The samples of a shard, as lines of JSON that are parsed one at a time.

    As objects, millions of samples would take gigabytes, and once more in every worker process.

    Args:
        lines: One entry per line, as `of` writes them.
    """

    def __init__(self, lines: bytes) -> None:
        self.lines = lines
        self._ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._last: tuple[int, Entry] | None = None

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Serialises entries."""
        return cls("".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode())

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if self._last and self._last[0] == place:  # Reading one sample asks for its entry several times in a row.
            return self._last[1]
        start = int(self._ends[place - 1]) + 1 if place else 0
        line = self.lines[start : int(self._ends[place])]
        key, kind, replies, members, *rest = parse_json(line)
        entry = Entry(key, kind, replies, [(suffix, offset, size) for suffix, offset, size in members], *rest)
        self._last = place, entry
        return entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and other.lines == self.lines

    def __hash__(self) -> int:
        return hash(self.lines)


@dataclass(frozen=True)
class Shard:
    """A tar and where its samples lie.

    Args:
        path: Path or address of the tar.
        entries: All samples in their order, bad ones included.
        skipped: Number of files that were left out, by reason.
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
            descriptor = os.open(self.path, os.O_RDONLY)  # one read; a file object costs as much as opening it
            try:
                data = os.pread(descriptor, stop - start, start)
            finally:
                os.close(descriptor)
        if len(data) != stop - start:
            raise BadSample("shard ends early")
        return {suffix: data[offset - start : offset - start + size] for suffix, offset, size in places}


def open_shards(places: Sequence[Path | Url], cache: str | Path = CACHE, threads: int = 1) -> list[Shard]:
    """The indices of some tars, in their order.

    Args:
        places: Tars.
        cache: Folder for an index that cannot stand beside its tar.
        threads: Number of tars that are indexed at once; picture decoders release the interpreter's lock.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(lambda place: open_shard(place, cache), places))


def open_shard(place: Path | Url, cache: str | Path = CACHE) -> Shard:
    """The index of a tar: the one that is kept if it still fits, else a new one.

    It is kept beside the tar as ``<tar>.idx.json``, or in `cache` if the tar is remote or its folder not writable.
    A damaged tar is not an error: what can be read before the damage is kept, the rest is counted in `skipped`.

    Args:
        place: Tar.
        cache: Folder for an index that cannot stand beside its tar.

    Raises:
        UserError: If a remote tar cannot be reached.
    """
    if isinstance(place, Path):
        stat = place.stat()
        now: dict[str, Any] = {"version": _VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        homes = [place.with_name(place.name + ".idx.json")]
    else:
        now, homes = {"version": _VERSION, **stamp(place, "path")}, []
    address = str(place.absolute() if isinstance(place, Path) else place)
    name = f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.idx.json"
    homes.append(Path(cache).expanduser() / "index" / name)
    for home in homes:
        with suppress(OSError, ValueError, KeyError, TypeError):  # An unreadable index is replaced by a new one.
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
            # Only neighbours form a sample: a key that comes back later is a separate fragment, as in WebDataset.
            for key, group in groupby(files_of(file, size, skipped), key=lambda row: row[0]):
                members: dict[str, tuple[str, int, int]] = {}
                for _, suffix, offset, length in group:
                    if suffix in members:
                        skipped["duplicate"] += 1
                    else:
                        members[suffix] = (suffix, offset, length)
                entries.append(_entry(file, clean_key(key), list(members.values())))
    except OSError as error:
        skipped[f"unreadable shard ({type(error).__name__})"] += 1
    return Shard(str(place), Entries.of(entries), dict(+skipped))


def _entry(file: IO[bytes], key: str, places: list[tuple[str, int, int]]) -> Entry:
    """Reads a sample as training would, and records its kind and replies, or its fault."""
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
    """Begin and end of a sample's files in the tar: they are neighbours, so one request brings them all.

    Raises:
        BadSample: If a file is too large, or they lie too far apart.
    """
    start = min((offset for _, offset, _ in places), default=0)
    stop = max((offset + size for _, offset, size in places), default=0)
    if any(size > MAX_MEMBER for _, _, size in places) or stop - start > _MAX_SPAN:
        raise BadSample(TOO_LARGE)
    return start, stop


def _length(sample: Sample, turn: int) -> int:
    """Length of the sequence of a reply, in bytes of text."""
    view = view_of(sample, turn)
    words = [view.request.instruction, *view.request.history]
    words += [part for segment in view.reply for part in (segment.answer, segment.caption or "")]
    pictures = sum(segment.caption is not None for segment in view.reply)
    return sum(len(part.encode(errors="replace")) for part in words) + _PICTURE * pictures
