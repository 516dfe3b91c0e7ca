"""The samples of a tar that is read from its start to its end, by webdataset's iterators."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_expander

from m2chat.data.shard_file import ShardFile
from m2chat.data.sources import BadSample
from m2chat.data.tar_files import BLOCK, MAX_MEMBER, REST, TOO_LARGE, clean_key, ends_early, is_read
from m2chat.errors import UserError

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00\x00", b"\x28\xb5\x2f\xfd")
"""First bytes of compressed files, which the tar reader would unpack to any size."""
_SLACK = 2**16
"""Bytes that the tar reader may read beyond a file, in whole blocks."""


@dataclass(frozen=True)
class TarSample:
    """The files of a sample.

    Args:
        key: Name of the sample: letters, digits, ``_`` and ``-``.
        members: Suffix to bytes of each file.
        faults: Reasons for which files before it in the shard were left out.
    """

    key: str
    members: dict[str, bytes]
    faults: tuple[str, ...] = ()


class _Guard:
    """What the tar reader reads from: no compressed stream, and no file larger than is read anywhere else.

    Args:
        file: The bytes of a shard.
    """

    def __init__(self, file: ShardFile) -> None:
        self._file, self._begun = file, False
        self._left: int | None = None
        self.last = b""
        """The last block that was read."""
        self.lost: UserError | None = None
        """Why the shard could not be read on."""

    def read(self, size: int) -> bytes:
        """The next bytes; fewer at the end.

        Raises:
            UserError: If the shard cannot be reached.
            BadSample: If a file is too large.
            TarError: If the shard is compressed.
        """
        try:
            data = self._file.read(size)
        except UserError as error:
            self.lost = UserError(str(error))
            raise
        if not self._begun and data.startswith(_COMPRESSED):
            raise tarfile.ReadError("a compressed tar")
        self._begun = True
        self.last = (self.last + data)[-BLOCK:]
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BadSample(TOO_LARGE)
        return data

    def expects(self, size: int | None) -> None:
        """Sets how many bytes may be read before the next call; None for any number."""
        self._left = size

    def close(self) -> None:
        """Nothing: the file is closed by the function that opened it."""


def tar_samples(address: str, file: ShardFile, faults: list[str]) -> Iterator[TarSample]:
    """The samples of a tar, in their order; nothing of them is decoded.

    A damaged tar is not an error: what can be read before the damage is kept.

    Args:
        address: Name of the tar.
        file: Its bytes.
        faults: List to which the reason of each file is added that is left out.

    Raises:
        UserError: If the bytes cannot be read.
    """
    guard = _Guard(file)
    known = False

    def broken(error: Exception) -> bool:
        nonlocal known
        if guard.lost is not None:
            raise guard.lost from error
        known = True
        # A file that was left in the middle cannot be passed over: the reader has lost its place.
        faults.extend([error.reason, REST] if isinstance(error, BadSample) else [REST])
        return False

    def repeated(_: Exception) -> bool:
        faults.append("duplicate")
        return True

    def wanted(name: str) -> bool:
        if not is_read(name.rpartition("/")[2].partition(".")[2]):
            faults.append("unknown suffix")
            guard.expects(None)
            return False
        guard.expects(MAX_MEMBER + _SLACK)
        return True

    opened: list[dict[str, Any]] = [{"url": address, "stream": guard}]
    files = tar_file_expander(opened, handler=broken, select_files=wanted)
    for group in group_by_keys(files, handler=repeated):
        members = {name: data for name, data in group.items() if not name.startswith("__")}
        yield TarSample(clean_key(group["__key__"]), members)
    if not known and ends_early(guard.last):
        faults.append(REST)
