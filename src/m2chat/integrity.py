"""Compares files of weights with their checksums before they are used.

A file's SHA-256 is taken from, in this order:

1. a list beside it or up to two folders above: ``m2chat.sha256``, in the form of ``sha256sum``, or ``manifest.json``;
2. the file itself: a zip archive (``.ckpt``, ``.npz``) carries it as its comment, safetensors among their strings;
3. for files of others, of which nothing is stated, what they had when they were first read here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from m2chat.checksums import is_sealed, sha256, stated
from m2chat.errors import UserError
from m2chat.files import whole_file

_LOG = logging.getLogger(__name__)

LARGE = 1 << 28
"""Bytes from which on a file that keeps size, time and inode is not read again to compare its checksum."""
_SETTLED = 2 * 10**9  # ns; a younger file may be changed again within one tick of the file system's clock

_compared: dict[str, tuple[tuple[int, ...], bool | str]] = {}  # of this process: its stamp, and what came out
_comparing: ContextVar[bool] = ContextVar("comparing", default=True)


def verify(path: Path) -> bool:
    """Compares a file with its checksum; each file is read once in a process as long as it does not change.

    Args:
        path: File that is there.

    Returns:
        Whether a checksum is stated anywhere. If not, the file's is remembered in the user's cache for next time.

    Raises:
        UserError: If the contents are not those that they should be.
    """
    if not _comparing.get():
        return False
    stamp, name = _stamp(path), os.path.abspath(path)
    if (known := _compared.get(name)) is None or known[0] != stamp:
        try:
            result: bool | str = _compare(path, stamp)
        except UserError as error:
            result = str(error)
        settled = time.time_ns() - stamp[1] > _SETTLED
        known = _compared[name] = (stamp if settled else (), result)
    if isinstance(known[1], str):
        raise UserError(known[1])
    return known[1]


def has_checksum(path: Path) -> bool | None:
    """Whether a checksum was stated when a file was last verified by this process; None if it never was."""
    known = _compared.get(os.path.abspath(path))
    return None if known is None else known[1] is not False


def verify_listed(paths: Iterable[Path]) -> None:
    """Compares those files of which a list states the checksum: descriptions, tokenizers, whatever libraries read.

    Raises:
        UserError: If one is not what it should be.
    """
    for path in paths:
        if path.is_file() and stated(path):
            verify(path)


def verify_folder(folder: Path) -> None:
    """`verify_listed` for everything in a folder that a library is going to read.

    Raises:
        UserError: If a file is not what it should be, or something there is a pipe or a device, which a library would
            wait for or read without end.
    """
    paths = sorted(folder.rglob("*"))
    if special := next((path for path in paths if path.exists() and not (path.is_file() or path.is_dir())), None):
        raise UserError(f"{special} is neither a file nor a folder, but a pipe or a device: remove it")
    verify_listed(paths)


@contextmanager
def not_verified() -> Iterator[None]:
    """A block in which files are read as they are: to look at a damaged one."""
    token = _comparing.set(False)
    try:
        yield
    finally:
        _comparing.reset(token)


# What was read here before


@dataclass(frozen=True)
class Seen:
    """A file as it was read here.

    Args:
        path: Where.
        stamp: Size, time in ns and inode.
        sha256: Of its contents.
    """

    path: str
    stamp: tuple[int, ...]
    sha256: str


def seen(path: Path) -> Seen | None:
    """What is remembered of a file."""
    with suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):
        kept = json.loads(_place(path).read_text(encoding="utf-8"))
        return Seen(kept["path"], tuple(kept["stamp"]), kept["sha256"])
    return None


def _remember(path: Path, stamp: tuple[int, ...], digest: str) -> None:
    place = _place(path)
    with suppress(OSError, RuntimeError):  # a read-only home costs time, nothing else
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as part:
            part.write_text(json.dumps(asdict(Seen(os.path.abspath(path), stamp, digest))), encoding="utf-8")


def _place(path: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2chat" / "checksums"
    return cache / f"{hashlib.sha256(os.path.abspath(path).encode(errors='surrogateescape')).hexdigest()[:24]}.json"


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _compare(path: Path, stamp: tuple[int, ...]) -> bool:
    wanted = stated(path)
    if wanted is None and is_sealed(path):
        return True
    before = seen(path)
    same = before is not None and before.stamp == stamp
    if before and same and stamp[0] >= LARGE:
        digest = before.sha256
    else:
        if stamp[0] >= LARGE:
            _LOG.info("computing the SHA-256 of %s (%.1f GB) once", path, stamp[0] / 1e9)
        digest = sha256(path)
    if wanted is None and before and digest != before.sha256:
        if same:
            raise UserError(
                f"{path} is damaged: its contents have changed since it was first read here, its size and time have "
                "not; get it again"
            )
        _LOG.warning("%s is another file than the one that was first read here", path)
    if not same and (wanted is None or stamp[0] >= LARGE):
        _remember(path, stamp, digest)
    if wanted is not None and digest != wanted[0]:
        raise UserError(
            f"{path} is damaged or was replaced: its SHA-256 differs from that in {wanted[1]}; copy it again or, if "
            "you changed it yourself, write that list anew"
        )
    return wanted is not None
