"""The bytes of a shard from its start to its end, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from m2chat.data.remote import PIPE, Url, read_block, stamp
from m2chat.errors import UserError

_BLOCK = 2**22
"""Bytes of a request."""

_T = TypeVar("_T")


class ShardFile(Protocol):
    """The bytes of a shard from its start to its end."""

    def read(self, size: int) -> bytes:
        """Some of the next bytes, none at the end.

        Raises:
            UserError: If they cannot be read.
        """

    def finish(self) -> None:
        """Called when everything that is wanted has been read.

        Raises:
            UserError: If the rest shows that it was not whole.
        """

    def close(self) -> None:
        """Ends it, wherever it is."""


def open_shard_file(place: Path | Url, setting: str) -> ShardFile:
    """The bytes of a shard.

    Args:
        place: Tar, or ``pipe:`` with a command, which is run.
        setting: Name of the setting, for errors.

    Raises:
        UserError: If it does not exist or cannot be reached.
    """
    if isinstance(place, Path):
        return _LocalFile(place, setting)
    return _PipeOutput(place, setting) if place.address.startswith(PIPE) else _Download(place, setting)


class _LocalFile:
    """A local file."""

    def __init__(self, place: Path, setting: str) -> None:
        self._name = f"{setting}={str(place)!r}"
        self._file = self._do(lambda: place.open("rb"))

    def _do(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except OSError as error:
            raise UserError(f"{self._name} cannot be read: {error}") from error

    def read(self, size: int) -> bytes:
        return self._do(lambda: self._file.read(size))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


class _PipeOutput:
    """The output of a command."""

    def __init__(self, command: Url, setting: str) -> None:
        from webdataset.gopen import gopen_pipe

        self._name = f"{setting}={command.address!r}"
        self._pipe: Any = gopen_pipe(command.address)

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._pipe.read(size)
        except OSError as error:
            raise UserError(f"{self._name} failed: {error}") from error
        return data

    def finish(self) -> None:
        while self.read(_BLOCK):  # so that the command ends by itself
            pass
        try:
            self._pipe.close()
        except OSError as error:
            raise UserError(f"{self._name} failed: {error}") from error

    def close(self) -> None:
        with suppress(OSError):
            if self._pipe.status is None:
                self._pipe.proc.kill()
            self._pipe.close()


class _Download:
    """A remote file in large blocks, one of which is on its way while another is used.

    A block is a request of its own, so a connection that breaks or was idle for too long costs a block.
    """

    def __init__(self, url: Url, setting: str) -> None:
        self._url, self._name = url, f"{setting}={url.address!r}"
        self._size: int | None = stamp(url, setting)["bytes"]
        self._pool = ThreadPoolExecutor(1)
        self._block, self._used, self._start = b"", 0, 0
        self._next: Future[bytes] | None = self._pool.submit(self._fetch, 0)

    def _fetch(self, start: int) -> bytes:
        return read_block(self._url, start, _BLOCK, self._size)

    def read(self, size: int) -> bytes:
        if self._used >= len(self._block) and self._next is not None:
            try:
                self._block, self._used = self._next.result(), 0
            except OSError as error:
                raise UserError(
                    f"{self._name} cannot be read on ({error}): check the server and the connection; the training goes "
                    "on from its last checkpoint"
                ) from error
            self._start += len(self._block)
            self._next = self._pool.submit(self._fetch, self._start) if len(self._block) == _BLOCK else None
        data = self._block[self._used : self._used + size]
        self._used += len(data)
        return data

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
