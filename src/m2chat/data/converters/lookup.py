"""A table on disk, for joins that would not fit into memory: captions by picture, pictures by URL."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from m2chat.data.converters.drafts import Job
from m2chat.data.converters.jsonfiles import lines
from m2chat.data.sources import one_line
from m2chat.errors import UserError


class Lookup:
    """Text to whatever JSON can say.

    Args:
        path: A file that is made anew.
        rows: Keys and values; of two rows with one key the first counts.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._table = sqlite3.connect(path)
        # It is made anew after a crash, so nothing has to be written safely.
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
    """Captions by the names of pictures, from the job's side file if it has one."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.work / "captions.sqlite", () if job.captions is None else _captions(job.captions))

    def of(self, key: str) -> tuple[str, str]:
        """Caption and who wrote it; both empty if there is none."""
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
