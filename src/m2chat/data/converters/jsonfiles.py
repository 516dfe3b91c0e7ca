"""JSON files of hundreds of megabytes: read an item at a time, joined through a table on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from m2chat.data.converters.raw import Job
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.textfiles import NOT_UTF8, lines_of, not_utf8, open_utf8


@dataclass(frozen=True)
class Broken:
    """A line that holds no JSON.

    Args:
        reason: Reason, for `Reject`.
    """

    reason: str


def items(path: Path, place: str = "", encoding: str = "") -> Iterator[Any]:
    """The items of a list.

    Args:
        path: JSON file.
        place: Key of the list in the file's object; empty if the file is the list.
        encoding: Encoding of the file, as for `open_utf8`.

    Raises:
        UserError: If the file is missing, not JSON, or has no such list.
    """
    _expect(path, "{" if place else "[", place, encoding)
    some = False
    for item in _parsed(path, "items", f"{place}.item" if place else "item", encoding):
        some = True
        yield item
    if place and not some:
        keys = [key for key, _ in _parsed(path, "kvitems", "", encoding)]
        if place not in keys:
            raise UserError(
                f"{path} has no list {place!r}: its keys are {', '.join(keys) or 'none'}; is it another file?"
            )


def pairs(path: Path, encoding: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that is one object.

    Raises:
        UserError: If the file is missing, not JSON, or no object.
    """
    _expect(path, "{", "", encoding)
    yield from _parsed(path, "kvitems", "", encoding)


def _expect(path: Path, start: str, place: str, encoding: str) -> None:
    """Checks that a file is a list (``[``) or an object (``{``).

    Raises:
        UserError: If it is neither, or the other.
    """
    with open_utf8(path, encoding) as file:
        first = file.read(4096).lstrip()[:1].decode("ascii", "replace")
    shapes = {"[": "a list", "{": "an object"}
    if first != start:
        wanted = shapes[start] + (f" with {place!r}" if place else "")
        raise UserError(
            f"{path} is {shapes.get(first, 'empty' if not first else 'no JSON')}, and {wanted} was expected: "
            "is it another file, or data of another kind?"
        )


def records(path: Path, encoding: str = "") -> Iterator[Any]:
    """The records of a file of JSON lines, of one list, or of one object; `Broken` for a line that is no JSON.

    Raises:
        UserError: If the file is missing or not JSON.
    """
    with open_utf8(path, encoding) as file:
        # A list may stand in one line, of any length: only other files are read by lines.
        start = file.peek(1024).lstrip()[:1]  # type: ignore[attr-defined]
        head = second = b""
        if start != b"[":
            head = next((line for line in file if not line.isspace()), b"")
            second = file.readline().lstrip()
    if start == b"[":
        yield from items(path, "", encoding)
    elif not head:
        return
    elif not isinstance(_parse(head), Broken) or second[:1] == b"{":
        yield from lines(path, encoding)
    else:  # Printed over many lines.
        yield from _parsed(path, "items", "", encoding, multiple_values=True)


def lines(path: Path, encoding: str = "") -> Iterator[Any]:
    """The records of a file of JSON lines; `Broken` for a line that is no JSON.

    Raises:
        UserError: If the file is missing.
    """
    for line in lines_of(path, encoding):
        if not line.isspace():
            yield _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Broken(NOT_UTF8)
    except (ValueError, RecursionError):
        return Broken("broken json")


def _parsed(path: Path, what: str, place: str, encoding: str, **options: Any) -> Iterator[Any]:
    import ijson

    with open_utf8(path, encoding) as file:
        try:
            yield from getattr(ijson, what)(file, place, use_float=True, **options)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
                raise not_utf8(path) from error
            raise UserError(f"{path} is broken or not JSON ({error}); download it again or mend it") from error


def new_table(path: Path) -> sqlite3.Connection:
    """An empty SQLite file in place of an older one, for rows that would not fit into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    table = sqlite3.connect(path)
    # The file is made anew after a crash, so nothing has to be written safely.
    table.execute("PRAGMA synchronous = OFF")
    table.execute("PRAGMA journal_mode = OFF")
    return table


class _Table:
    """Rows in an SQLite file, which is closed at the end of a block.

    Args:
        path: SQLite file; an older one is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._table = new_table(path)

    @staticmethod
    def _storable(key: str) -> str:
        """A key without halves of surrogate pairs, which JSON may hold and SQLite cannot."""
        return key.encode(errors="replace").decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()


class Lookup(_Table):
    """A map from text to JSON values in an SQLite file, for joins that would not fit into memory.

    Args:
        path: SQLite file; an older one is replaced.
        rows: Keys and values; of two rows with one key the first counts.

    Attributes:
        conflicts: Number of rows whose key has another value already.
        conflict: Key of the first of them.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[str, Any]]) -> None:
        super().__init__(path)
        self._table.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        self.conflicts, self.conflict = 0, ""
        for raw_key, value in rows:
            key, text = self._storable(raw_key), json.dumps(value)
            if not self._table.execute("INSERT OR IGNORE INTO t VALUES (?, ?)", (key, text)).rowcount:
                (kept,) = self._table.execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
                if kept != text:
                    self.conflict = self.conflict or key
                    self.conflicts += 1

    def get(self, key: str) -> Any:
        """The value of a key, None if there is none."""
        row = self._table.execute("SELECT value FROM t WHERE key = ?", (self._storable(key),)).fetchone()
        return None if row is None else json.loads(row[0])


class Groups(_Table):
    """Rows brought together by a key, in an SQLite file; groups come in the order of their first rows.

    Args:
        path: SQLite file; an older one is replaced.
        rows: Keys and values.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[str, Any]]) -> None:
        super().__init__(path)
        self._table.execute("CREATE TABLE keys (place INTEGER PRIMARY KEY, key TEXT UNIQUE)")
        self._table.execute("CREATE TABLE t (place INTEGER, number INTEGER, value TEXT, PRIMARY KEY (place, number))")
        for number, (raw_key, value) in enumerate(rows):
            key = self._storable(raw_key)
            self._table.execute("INSERT OR IGNORE INTO keys (key) VALUES (?)", (key,))
            self._table.execute(
                "INSERT INTO t SELECT place, ?, ? FROM keys WHERE key = ?", (number, json.dumps(value), key)
            )

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        rows = self._table.execute("SELECT key, value FROM keys JOIN t USING (place) ORDER BY place, number")
        for key, group in groupby(rows, key=lambda row: row[0]):
            yield key, [json.loads(value) for _, value in group]


class Captions(Lookup):
    """Captions by ``media_key``, from the conversion's side file; empty without one.

    Args:
        job: Conversion.

    Raises:
        UserError: If a line of the file is no caption, or a key has two. Leaving the block raises it if no picture of
            the data has one of the keys.
    """

    def __init__(self, job: Job) -> None:
        self._file, self._asked, self._met = job.captions, "", False
        super().__init__(
            job.work / "captions.sqlite", () if job.captions is None else _captions(job.captions, job.encoding)
        )
        if self.conflicts:
            raise UserError(
                f"--captions {job.captions}: {self.conflicts} lines give another caption to a media_key that has one, "
                f"the first is {self.conflict!r}; keep one line for each"
            )

    def of(self, key: str) -> tuple[str, str]:
        """Caption and its origin; both empty if there is none."""
        self._asked = self._asked or key
        value = self.get(key)
        self._met = self._met or value is not None
        caption, by = value or ("", "")
        return caption, by

    def __exit__(self, *error: object) -> None:
        first = self._table.execute("SELECT key FROM t LIMIT 1").fetchone()
        super().__exit__(*error)
        if not any(error) and first is not None and self._asked and not self._met:
            raise UserError(
                f"--captions {self._file}: none of its media_keys occurs in the data: they are like {first[0]!r}, and "
                f"the data's are like {self._asked!r}; write the data's names, or leave --captions out"
            )


def _captions(path: Path, encoding: str) -> Iterable[tuple[str, tuple[str, str]]]:
    for number, row in enumerate(lines(path, encoding), 1):
        if isinstance(row, Broken) and row.reason == NOT_UTF8:
            raise not_utf8(path)
        if not isinstance(row, dict) or not isinstance(row.get("media_key"), str):
            raise UserError(
                f'--captions {path}: line {number} is not {{"media_key": "...", "caption": "..."}}; mend or drop it'
            )
        if caption := one_line(row.get("caption")):
            yield row["media_key"], (caption, one_line(row.get("caption_by")) or "file")
