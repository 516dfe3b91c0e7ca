"""Files and folders that are whole or not there, and that no two processes share."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from m2chat.errors import CannotWriteError, UserError

_DIGITS = 32
"""Length to which numbers are padded before they are compared."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that only writing ends in."""
_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE."""
_TORCH_WRITES = ("unexpected pos", "PytorchStreamWriter failed", "Parent directory")
"""What `torch.save` reports, as RuntimeError, when a write has failed; the system's reason is lost."""


def by_number(place: object) -> tuple[list[str], str]:
    """Sort key of paths, addresses and names by which ``part-10`` comes behind ``part-9``.

    Names whose numbers are padded to the same length keep the order of their letters.
    """
    text = str(place)
    parts = place.parts if isinstance(place, PurePath) else (text,)
    return [re.sub(r"\d+", lambda digits: digits[0].zfill(_DIGITS), part) for part in parts], text


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a file that found no room: a full disk, a quota, a limit of a file's size."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_failed_write(error: BaseException) -> bool:
    """Whether an error is that of `torch.save` whose write has failed."""
    return any(sign in str(error) for sign in _TORCH_WRITES)


def cannot_write(path: Path, error: BaseException, need: int | None = None, written: int | None = None) -> Exception:
    """The error for a file that cannot be written.

    Args:
        path: The file.
        error: What the system reports.
        need: Size of the file in bytes, where it is known.
        written: Bytes that were written before it failed, where they are known.
    """
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if is_failed_write(error):
        reason = "the disk is full" if free < (need or 1) else f"writing failed ({reason})"
    sizes = [f"{need:,} bytes are needed"] if need is not None else []
    sizes += [f"{written:,} bytes were written"] if written is not None else []
    return CannotWriteError(
        f"cannot write {path}: {reason} ({', '.join([*sizes, f'{free:,} bytes are free'])}); make room, or name "
        "another place"
    )


def of_full_disk(error: OSError) -> Exception:
    """The error for a write that found no room where nobody knows the file, or only the error does."""
    return cannot_write(Path(error.filename) if isinstance(error.filename, str) else Path("a file").absolute(), error)


@contextmanager
def whole_file(path: Path, need: int | None = None) -> Iterator[Path]:
    """A place beside a file to write it to; it gets its name only when the block ends without an error.

    Nobody ever sees a part of it, and an older file of that name stays until then. Several processes, on several
    machines too, may write the same file; the last to end wins.

    Args:
        path: The file; its folder exists.
        need: Size of the file in bytes, where it is known, for the message.

    Yields:
        A path that nobody else has, ending in ``.part``.

    Raises:
        CannotWriteError: If the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    except CannotWriteError:
        raise
    except OSError as error:
        if is_full(error) or error.filename in (part, str(part)):
            raise cannot_write(path, error, need, _size(part)) from error
        raise
    except RuntimeError as error:
        if is_failed_write(error):
            raise cannot_write(path, error, need, _size(part)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def write_whole(path: Path, data: bytes | Iterable[str]) -> None:
    """Writes a file by `whole_file`.

    Args:
        path: The file; its folder exists.
        data: Content of the file: bytes, or texts that are written as UTF-8 one behind the other, with lone surrogates
            replaced and line ends as they are.

    Raises:
        CannotWriteError: If the disk is full, or the folder cannot be written.
    """
    with whole_file(path, len(data) if isinstance(data, bytes) else None) as part:
        if isinstance(data, bytes):
            part.write_bytes(data)
        else:
            with part.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.writelines(data)


@contextmanager
def whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into that appears under its name only when everything in it is there.

    Args:
        target: The folder to make; an empty one may be there.
        replace: Whether one with something in it may be there too, and gives way at the end.

    Yields:
        A folder beside it that nobody else has.

    Raises:
        UserError: If the target has something in it, or cannot be written.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not replace):
        raise UserError(f"{target} is there already and has something in it: name a new folder, or remove it first")
    part = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        put_in_place(part, target)
    except CannotWriteError:
        raise
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def put_in_place(part: Path, target: Path) -> None:
    """Gives a file or folder a name; what had the name before, if anything, gets the other one, at the same moment.

    Systems without such an exchange have a moment with neither under the name.
    """
    if not target.exists():
        part.rename(target)
    elif not _exchange(part, target):
        spare = part.with_name(f"{part.name}.spare")
        target.rename(spare)
        part.rename(target)
        spare.rename(part)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def take_folder(parent: Path, names: Iterable[str]) -> Path:
    """Makes the first folder of some names that is not there yet; of several processes, each gets another one.

    Args:
        parent: Folder in which it is made; made if it does not exist.
        names: Names in the order in which they are tried; usually without an end.

    Raises:
        UserError: If all of them are there, or none can be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            with suppress(FileExistsError):  # making it is the only test that no other process can come between
                (parent / name).mkdir()
                return parent / name
    except OSError as error:
        raise UserError(f"cannot make a folder in {parent}: {error.strerror or error}; name another place") from error
    raise UserError(f"every folder that was to be made in {parent} is there already: name another place")


def take_file(folder: Path, stem: str, suffix: str) -> Path:
    """Makes the empty file ``<stem><suffix>``, or ``<stem>_1<suffix>``, ``<stem>_2<suffix>``, … where that is there.

    Args:
        folder: Folder in which it is made; made if it does not exist.
        stem: Name without the suffix.
        suffix: Such as ``.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / f"{stem}{f'_{number}' if number else ''}{suffix}"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Writes a file under a name that no other has: that of `take_file`, which is given up if the file does not fit.

    Raises:
        CannotWriteError: If the disk is full, or the folder cannot be written.
    """
    try:
        path = take_file(folder, stem, suffix)
    except OSError as error:
        raise cannot_write(folder / f"{stem}{suffix}", error, len(data)) from error
    try:
        write_whole(path, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a path for this process, until the block or the process ends.

    The lock is that of the system (``flock``) on a hidden file beside the path, so a process that was killed holds
    nothing. On file systems without such locks, as some of clusters are mounted, every process gets it.

    Args:
        path: File or folder, there or not; its parent exists.
        wait: Whether to wait for another process that holds it.

    Raises:
        UserError: If another process holds it and `wait` is false.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"another process writes to {path} at this moment: wait until it has ended, or name another place"
            ) from error
        except OSError:  # no such locks here
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                break
        os.close(descriptor)  # the process that held it before has removed the file: what this one holds is gone
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
