"""Remote shards: ``http(s)://``, ``s3://`` and fsspec's other protocols, and the output of a command (``pipe:``)."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from m2chat.errors import UserError
from m2chat.files import by_number, whole_file

PIPE = "pipe:"
CACHE = "~/.cache/m2chat"
"""Default folder for indices of remote and read-only shards, and for the output of pipes."""
_TRIES, _PAUSE = 3, 1.0
_TRANSIENT = (408, 425, 429)
"""HTTP's statuses of a request that may be sent again, beside those of 500 and more."""

_T = TypeVar("_T")


@dataclass(frozen=True, order=True)
class Url:
    """The address of a remote shard; it has the few attributes of a path that shards need.

    Args:
        address: Address with its protocol, such as ``s3://bucket/cc3m/00000.tar``.
    """

    address: str

    @property
    def name(self) -> str:
        """The last part, without a query."""
        return urlsplit(self.address).path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name.removesuffix(".tar")

    def __str__(self) -> str:
        return self.address


def is_remote(path: str) -> bool:
    """Whether a path is for fsspec or a ``pipe:``, and not local."""
    return "://" in path or path.startswith(PIPE)


def find_remote(path: str, setting: str) -> list[Url]:
    """The tars that a remote path names, sorted; a single one is not checked before it is opened.

    Args:
        path: Tar, folder of them where the server lists folders, or pattern with ``*`` and ``[]``.
        setting: Name of the setting, for errors.

    Raises:
        UserError: If the protocol is unknown, its package is missing, or there is no tar.
    """
    system, place = _system(path, setting)
    if "*" not in path and "[" not in path and Url(path).name.endswith(".tar"):
        return [Url(path)]
    try:
        names = _patiently(lambda: system.glob(place if "*" in path or "[" in path else f"{place.rstrip('/')}/*.tar"))
    except OSError as error:
        raise UserError(f"{setting}={path!r} cannot be listed ({error}): name the shards one by one") from error
    shards = sorted((Url(system.unstrip_protocol(name)) for name in names if name.endswith(".tar")), key=by_number)
    if not shards:
        raise UserError(f"{setting}={path!r} names no .tar: give one, a folder that can be listed or a pattern")
    return shards


def refuse_pipe(command: str, setting: str, *, allowed: bool) -> None:
    """Raises unless a command may be run.

    Raises:
        UserError: If its source does not have ``allow_pipe: true``.
    """
    if not allowed:
        raise UserError(
            f"{setting}={command!r} would run a command, which a path must not do unasked: use an http://, s3:// or "
            "local path, or give that source `allow_pipe: true` if you wrote the command yourself"
        )


def fetch(command: str, folder: Path, setting: str, *, allowed: bool) -> Path:
    """The output of a command, kept in a file so that its samples can be read in any order; it runs only once.

    Args:
        command: Command with its ``pipe:``.
        folder: Folder of the cache.
        setting: Name of the setting, for errors.
        allowed: Whether the source has ``allow_pipe: true``.

    Raises:
        UserError: If it is not allowed, or fails.
    """
    refuse_pipe(command, setting, allowed=allowed)
    target = folder / "pipes" / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.tar"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as part:
        with part.open("wb") as file:
            done = subprocess.run(command.removeprefix(PIPE), shell=True, stdout=file, stderr=subprocess.PIPE)
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()[-500:]
            raise UserError(f"{setting}={command!r} ended with {done.returncode}: {message or 'no error message'}")
    return target


def stamp(url: Url, setting: str) -> dict[str, Any]:
    """A value that changes when a remote file does: its size, and its version as the server states it.

    Raises:
        UserError: If it does not exist or cannot be reached.
    """
    system, place = _system(url.address, setting)
    try:
        info = _patiently(lambda: system.info(place))
    except OSError as error:
        raise UserError(
            f"{setting}={url.address!r} cannot be reached ({error}): check the address, the server and the connection"
        ) from error
    changed = next((info[key] for key in ("ETag", "LastModified", "mtime", "created") if info.get(key)), "")
    return {"bytes": info.get("size"), "changed": str(changed)}


def opened(url: Url) -> IO[bytes]:
    """The file, to read from its start to its end.

    Raises:
        UserError: If the server cannot give parts of a file.
    """
    system, place = _system(url.address, "path")
    file: IO[bytes] = _patiently(lambda: system.open(place, "rb", block_size=2**22, cache_type="blockcache"))
    if not file.seekable():
        raise UserError(f"{url}: the server gives whole files only, and samples are read one by one: copy the shard")
    return file


def read_range(url: Url, start: int, stop: int) -> bytes:
    """Bytes of a file.

    Raises:
        OSError: If it fails several times in a row.
    """
    system, place = _system(url.address, "path")
    data: bytes = _patiently(lambda: system.cat_file(place, start=start, end=stop))
    # A server may ignore the range and send everything.
    return data if len(data) <= stop - start else data[start:stop]


def read_block(url: Url, start: int, size: int, whole: int | None) -> bytes:
    """Bytes of a file, all of the rest where the server ignores what it is asked for.

    Args:
        url: Address of the file.
        start: Number of the first byte.
        size: Number of bytes.
        whole: Size of the file; None if unknown.

    Raises:
        OSError: If it fails several times in a row.
    """
    system, place = _system(url.address, "path")
    stop = start + size if whole is None else min(start + size, whole)
    if start >= stop:
        return b""

    def block() -> bytes:
        data: bytes = system.cat_file(place, start=start, end=stop)
        if whole is not None and len(data) < stop - start:
            raise OSError(f"{len(data)} bytes instead of {stop - start}")
        return data if len(data) <= stop - start else data[start:]

    return _patiently(block)


def _system(address: str, setting: str) -> tuple[Any, str]:
    # Never kept: an instance must not travel into another process, and fsspec caches them itself.
    from fsspec.core import url_to_fs

    try:
        system, place = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{setting}={address!r}: {error}") from error
    return system, place


def _patiently(action: Callable[[], _T]) -> _T:
    """Repeats an action after a pause if it fails, unless the server says that it will not succeed."""
    for attempt in range(_TRIES):
        try:
            return action()
        except Exception as error:  # Every file system raises other classes.
            # fsspec says that a file is not there whatever kept it from opening; the reason is the error's cause.
            reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            if attempt == _TRIES - 1 or _is_final(reason):
                raise OSError(f"{type(reason).__name__}: {reason}") from error
        time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _is_final(reason: BaseException) -> bool:
    """Whether a second try would fail as well: the file is not there, or the request is refused for good."""
    status = getattr(reason, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRANSIENT
    return isinstance(reason, FileNotFoundError)
