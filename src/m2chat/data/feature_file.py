"""The files of a feature cache: records of one size, and beside them rows: states, or CLIP tokens.

A part of a cache is one source of one split. It has an index, from which the place of every record follows, and
chunks of records. A chunk file appears under its name when it is whole, so that a build that was killed goes on with
the next, and several processes share the work without talking.

Shapes: R rows (in stage 1 the tokens that the M³Adapter reads), L layers, D width of the language model, Q queries, C
and P widths of the image decoder's condition.
"""

from __future__ import annotations

import mmap
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.data.feature_form import INDEX, NO_PICTURE, FeatureView, Form, Index
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.schema import KINDS, Image, Sample, Turn

_OPEN_CHUNKS = 64
"""Chunks that a process holds open at once."""
_PIXEL = np.zeros((1, 1, 3), np.uint8)


class FeaturePart:
    """The records of one source, read at random through memory maps; it can be sent to worker processes.

    Args:
        folder: Folder with the index and the chunks.
        form: Form of the records.
        chunk: Records per chunk; the last has what is left.
        index: The index; None reads it.
    """

    def __init__(self, folder: Path, form: Form, chunk: int, index: Index | None = None) -> None:
        self.folder, self.form, self.chunk = folder, form, chunk
        self.index = index or Index.read(folder / INDEX)
        self._firsts = np.cumsum(self.index.counts, dtype=np.int64) - self.index.counts
        self._row_ends = np.concatenate([[0], np.cumsum(self.index.rows, dtype=np.int64)])
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index.turns)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    @property
    def chunks(self) -> range:
        """Numbers of the chunks."""
        return range(-(-len(self) // self.chunk))

    def records(self, chunk: int) -> range:
        """Records of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, len(self)))

    def path(self, chunk: int) -> Path:
        """File of a chunk."""
        return self.folder / f"{chunk:06d}.bin"

    def size(self, chunk: int) -> int:
        """Bytes of a chunk."""
        records = self.records(chunk)
        rows = int(self._row_ends[records.stop] - self._row_ends[records.start])
        return len(records) * self.form.record.itemsize + rows * self.form.row.itemsize

    def is_there(self, chunk: int) -> bool:
        """Whether a chunk has been written."""
        path = self.path(chunk)
        return path.is_file() and path.stat().st_size == self.size(chunk)

    def missing(self) -> list[int]:
        """Chunks that have not been written."""
        return [chunk for chunk in self.chunks if not self.is_there(chunk)]

    # Building

    def write_blank(self, rows: NDArray[Any]) -> None:
        """Writes the CLIP tokens of an empty picture, which samples without a context picture have."""
        data = rows.tobytes()
        with whole_file(self._blank_path) as part:
            part.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))

    @property
    def _blank_path(self) -> Path:
        return self.folder / "blank.bin"

    @cached_property
    def _blank(self) -> NDArray[Any]:
        """What `write_blank` wrote.

        Raises:
            UserError: If it is missing or damaged.
        """
        data = self._blank_path.read_bytes() if self._blank_path.is_file() else b""
        if len(data) <= 4 or zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
            raise UserError(f"{self._blank_path} is missing or damaged: run `m2chat data features` again")
        return np.frombuffer(data[:-4], self.form.row)

    def write(self, chunk: int, records: NDArray[Any], rows: NDArray[Any]) -> None:
        """Writes a chunk.

        Args:
            chunk: Number of the chunk.
            records: Its records, of `Form.record`; their checksums are computed here.
            rows: Rows of all of them, one behind the other, of `Form.row`.

        Raises:
            UserError: If it cannot be written.
        """
        start = self.records(chunk).start
        ends = self._row_ends[start : start + len(records) + 1] - self._row_ends[start]
        for number, record in enumerate(records):
            record["crc"] = _checksum(record.tobytes(), rows[ends[number] : ends[number + 1]].tobytes())
        try:
            with whole_file(self.path(chunk)) as part, part.open("wb") as file:
                file.write(records.tobytes())
                file.write(rows.tobytes())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path(chunk)}: {error}; make room and run the same command again, it goes on"
            ) from error

    # Reading

    def sample(self, number: int, source: str) -> Sample:
        """A sample without its words and pictures: what decides which reply is drawn, and its noise.

        Args:
            number: Number among the kept samples of the source.
            source: Name of the source.
        """
        views = self.views(number)
        start = int(self.index.id_ends[number - 1]) if number else 0
        name = self.index.ids[start : int(self.index.id_ends[number])].tobytes().decode()
        pictures: Mapping[int, int] = {
            turn: sum(view.turn == turn and view.target != NO_PICTURE for view in views)
            for turn in {view.turn for view in views}
        }
        turns, images = [], 0
        for turn in range(max(pictures) + 1):
            count = pictures.get(turn, 0)
            turns.append(Turn("assistant" if turn in pictures else "user", tuple(range(images, images + count))))
            images += count
        kind = KINDS[self.index.kinds[number]]
        return Sample(name, tuple(turns), (Image(_PIXEL),) * images, kind=kind, source=source)

    def views(self, number: int) -> list[FeatureView]:
        """The views of a sample, in the order of its records."""
        first = int(self._firsts[number])
        return [self.view(record) for record in range(first, first + int(self.index.counts[number]))]

    def number(self, record: int) -> int:
        """Number of the sample, among the kept samples of the source, that a record belongs to."""
        return int(np.searchsorted(self._firsts, record, side="right")) - 1

    def view(self, record: int) -> FeatureView:
        """The view that a record is of."""
        return FeatureView(int(self.index.turns[record]), int(self.index.targets[record]), int(self.index.rows[record]))

    def find(self, number: int, turn: int, target: int | None) -> int:
        """The record of a reply.

        Args:
            number: Number of the sample.
            turn: Index of the reply among the turns.
            target: Index of its segment whose picture is drawn; None for the first that has one.
        """
        first = int(self._firsts[number])
        for place, view in enumerate(self.views(number)):
            if view.turn == turn and target in (None, view.target):
                return first + place
        raise KeyError(f"{self.folder}: sample {number} has no record of turn {turn}, segment {target}")

    def read(self, record: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """A record, and its rows; both are views of the file.

        Raises:
            UserError: If it is damaged.
        """
        chunk, place = divmod(record, self.chunk)
        data, form, records = self._map(chunk), self.form, self.records(chunk)
        start = len(records) * form.record.itemsize
        first = int(self._row_ends[record] - self._row_ends[records.start])
        count = int(self.index.rows[record])
        whole = np.frombuffer(data, form.record, 1, place * form.record.itemsize)[0]
        rows = np.frombuffer(data, form.row, count, start + first * form.row.itemsize)
        if whole["crc"] != _checksum(whole.tobytes(), rows.tobytes()):
            raise UserError(
                f"{self.path(chunk)} is damaged: record {place} differs from its checksum; remove the file and run "
                "`m2chat data features` again, which makes it anew"
            )
        return whole, rows if count or form.whole else self._blank

    def _map(self, chunk: int) -> mmap.mmap:
        if chunk in self._maps:
            self._maps.move_to_end(chunk)
        else:
            if not self.is_there(chunk):
                raise UserError(f"{self.path(chunk)} is missing or cut off: run `m2chat data features` again")
            with self.path(chunk).open("rb") as file:
                self._maps[chunk] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) > _OPEN_CHUNKS:
                self._maps.popitem(last=False)
        return self._maps[chunk]


def _checksum(record: bytes, rows: bytes) -> int:
    """Checksum of a record, whose first four bytes are left out, and of its rows."""
    return zlib.crc32(rows, zlib.crc32(record[4:]))
