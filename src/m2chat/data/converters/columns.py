"""Pictures in a column of a parquet file, read when a shard is written.

The process that writes a shard reads them one behind the other. Disk holds no copy, and memory one page of each column
of pictures: at most a row group, since a page cannot be read in part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.data.converters.raw import PictureFile, file_in, limited
from m2chat.data.converters.tables import opened_table

_BATCH = 16
"""Rows of pictures that are decoded at a time."""


@dataclass(frozen=True)
class ColumnPicture(PictureFile):
    """A picture in a column of the parquet file at `path`; `offset` is its row in the row group.

    Args:
        group: Row group.
        column: Column; it holds bytes, the path of a file, or a struct of ``bytes`` and ``path``.
        folder: Folder of pictures of which only the path is there.
    """

    group: int = 0
    column: str = ""
    folder: str = ""

    def read(self) -> bytes:
        """The bytes of the picture.

        Raises:
            BadImage: If there is none, or it is too large.
        """
        value = _reader(self.path, self.group, self.column).value(self.offset)
        data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
        if isinstance(data, bytes):
            return limited(data)
        return file_in(Path(self.folder), name).read()


class _Column:
    """The pictures of a column in a row group, read forward."""

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column
        self._next, self._rows = 0, self._all()
        self._last: Any = None

    def _all(self) -> Iterator[Any]:
        with opened_table(Path(self._path)) as file:
            # A struct of bytes and path is one column; its leaves are asked for by name.
            for batch in file.iter_batches(_BATCH, row_groups=[self._group], columns=[self._column]):
                column = batch.column(0)
                for place in range(len(column)):
                    yield column[place]

    def value(self, row: int) -> Any:
        """The cell of a row; rows are asked for in their order, or the reading begins anew."""
        if row < self._next - 1:
            self._next, self._rows = 0, self._all()
        while self._next <= row:
            self._last = next(self._rows)
            self._next += 1
        return self._last.as_py()


_readers: dict[str, tuple[tuple[Any, ...], _Column]] = {}
"""Readers of this process by column, each with the file and the row group that it reads."""


def _reader(path: str, group: int, column: str) -> _Column:
    stat = os.stat(path)
    place = (path, stat.st_size, stat.st_mtime_ns, group)
    known = _readers.get(column)
    if known is None or known[0] != place:
        known = _readers[column] = place, _Column(path, group, column)
    return known[1]
