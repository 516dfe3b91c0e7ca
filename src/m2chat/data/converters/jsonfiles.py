"""JSON files of hundreds of megabytes: read an item at a time, joined through a table on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from m2chat.data.converters.raw import Job
from m2chat.data.sources import one_line
from m2chat.errors import UserError


def items(path: Path, place: str = "") -> Iterator[Any]:
    """The items of a list.

    Args:
        path: JSON file.
        place: Key of the list in the file's object, with dots for deeper ones; empty if the file is the list.

    Raises:
        UserError: If the file is missing or not JSON.
    """
    yield from _parsed(path, "items", f"{place}.item" if place else "item")


def pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that is one object.

    Raises:
        UserError: If the file is missing or not JSON.
    """
    yield from _parsed(path, "kvitems", "")


def records(path: Path) -> Iterator[Any]:
    """The records of a file of JSON lines, of one list, or of one object; None for a line that is broken.

    Raises:
        UserError: If the file is missing or not JSON.
    """
    with _open(path) as file:
        start = file.read(1024).lstrip()[:1]
        file.seek(0)
        # A list may stand in one line, of any length: only other files are read by lines.
        head = second = b""
        if start != b"[":
            head = next((line for line in file if not line.isspace()), b"")
            second = file.readline().lstrip()
    if start == b"[":
        yield from items(path)
    elif _parse(head) is not None or second[:1] == b"{":
        yield from lines(path)
    else:  # Printed over many lines.
        yield from _parsed(path, "items", "", multiple_values=True)


def lines(path: Path) -> Iterator[Any]:
    """The records of a file of JSON lines; None for a line that is broken.

    Raises:
        UserError: If the file is missing.
    """
    with _open(path) as file:
        for line in file:
            if not line.isspace():
                yield _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is it the right file?") from error


def _parsed(path: Path, what: str, place: str, **options: Any) -> Iterator[Any]:
    import ijson

    with _open(path) as file:
        try:
            yield from getattr(ijson, what)(file, place, use_float=True, **options)
        except ijson.JSONError as error:
            raise UserError(f"{path} is broken or not JSON ({error}); download it again or mend it") from error


class Lookup:
    """A map from text to JSON values in an SQLite file, for joins that would not fit into memory.

    Args:
        path: SQLite file; an older one is replaced.
        rows: Keys and values; of two rows with one key the first counts.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._table = sqlite3.connect(path)
        # The file is made anew after a crash, so nothing has to be written safely.
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE t (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        encoded = ((key, json.dumps(value)) for key, value in rows)
        self._table.executemany("INSERT OR IGNORE INTO t VALUES (?, ?)", encoded)

    def get(self, key: str) -> Any:
        """The value of a key, None if there is none."""
        row = self._table.execute("SELECT value FROM t WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()


class Captions(Lookup):
    """Captions by ``media_key``, from the conversion's side file; empty without one.

    Args:
        job: Conversion.

    Raises:
        UserError: If a line of the file is no caption.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.work / "captions.sqlite", () if job.captions is None else _captions(job.captions))

    def of(self, key: str) -> tuple[str, str]:
        """Caption and its origin; both empty if there is none."""
        caption, by = self.get(key) or ("", "")
        return caption, by


def _captions(path: Path) -> Iterable[tuple[str, tuple[str, str]]]:
    for number, row in enumerate(lines(path), 1):
        if not isinstance(row, dict) or not isinstance(row.get("media_key"), str):
            raise UserError(
                f'--captions {path}: line {number} is not {{"media_key": "...", "caption": "..."}}; mend or drop it'
            )
        if caption := one_line(row.get("caption")):
            yield row["media_key"], (caption, one_line(row.get("caption_by")) or "file")
