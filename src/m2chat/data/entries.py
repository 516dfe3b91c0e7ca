"""What the index of a shard knows of each of its samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import overload

import numpy as np


@dataclass(frozen=True)
class Entry:
    """One sample of a shard.

    Args:
        key: Its name: letters, digits, ``_`` and ``-``.
        kind: What it teaches; ``unknown`` if its JSON is broken.
        replies: Indices of the turns that can be learned from or evaluated.
        members: Suffix, offset and size in bytes of each file.
        lengths: Of the sequence of each reply, in bytes of text: which are alike is known without a tokenizer.
        fault: Why it cannot be used; empty if it can.
    """

    key: str
    kind: str
    replies: list[int]
    members: list[tuple[str, int, int]]
    lengths: list[int] = field(default_factory=list)
    fault: str = ""


class Entries(Sequence[Entry]):
    """The samples of a shard, as lines of JSON that are read one at a time.

    As objects, millions of samples would take gigabytes, and once more in every worker process.

    Args:
        lines: An entry each, as `of` writes them.
    """

    def __init__(self, lines: bytes) -> None:
        self.lines = lines
        self._ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._last: tuple[int, Entry] | None = None

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Of entries as objects."""
        return cls("".join(json.dumps(astuple(entry), separators=(",", ":")) + "\n" for entry in entries).encode())

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
        if self._last and self._last[0] == place:  # Whoever reads a sample asks several times in a row.
            return self._last[1]
        start = int(self._ends[place - 1]) + 1 if place else 0
        key, kind, replies, members, lengths, fault = json.loads(self.lines[start : int(self._ends[place])])
        places = [(str(suffix), int(offset), int(size)) for suffix, offset, size in members]
        entry = Entry(str(key), str(kind), [*map(int, replies)], places, [*map(int, lengths)], str(fault))
        self._last = place, entry
        return entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and other.lines == self.lines

    def __hash__(self) -> int:
        return hash(self.lines)
