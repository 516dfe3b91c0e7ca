"""Text files that others have written: their encoding is detected or named, and only a line feed ends a line."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from m2chat.errors import UserError

NOT_UTF8 = "not UTF-8: name the file's encoding by --encoding, such as cp1252, or save it as UTF-8"
"""Reason for a record with bytes that are not UTF-8."""
_CHUNK = 2**16


def is_utf8(data: bytes) -> bool:
    """Whether bytes are text in UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def open_utf8(path: Path, encoding: str = "") -> BinaryIO:
    """The bytes of a text file as UTF-8, without a byte order mark.

    UTF-16 and UTF-32 are detected, by their mark or by the zeros of the first letters. Bytes of a file that is taken
    for UTF-8 are not checked here.

    Args:
        path: Text file.
        encoding: Encoding of a file without a mark; empty for UTF-8.

    Raises:
        UserError: If the file is missing, or the encoding is unknown. Reading raises it if the bytes do not fit another
            encoding than UTF-8.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is it the right file?") from error
    head = file.read(4)
    detected: str = json.detect_encoding(head)
    if detected == "utf-8" and encoding:
        detected = checked_encoding(encoding)
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    if detected in ("utf-8", "utf-8-sig"):
        return file
    return io.BufferedReader(_Recoded(file, path, detected))


def checked_encoding(name: str) -> str:
    """The usual name of an encoding.

    Raises:
        UserError: If Python knows none of that name.
    """
    try:
        return codecs.lookup(name).name
    except LookupError as error:
        raise UserError(
            f"--encoding {name}: no such encoding; utf-8, cp1252, utf-16, gb18030 and shift_jis are some"
        ) from error


def lines_of(path: Path, encoding: str = "") -> Iterator[bytes]:
    """The lines of a text file in UTF-8, as `open_utf8` gives them.

    ``str.splitlines`` would also split at U+0085, U+2028 and others, which JSON and tables hold as letters of a text.
    """
    with open_utf8(path, encoding) as file:
        yield from file


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of JSON lines; empty lines are skipped.

    Raises:
        json.JSONDecodeError: If a line is not JSON.
        UnicodeDecodeError: If a line is not UTF-8.
    """
    return [json.loads(line) for line in lines_of(path) if not line.isspace()]


def not_utf8(path: Path, data: bytes = b"", reason: str = NOT_UTF8) -> UserError:
    """The error for a file with bytes that are not UTF-8.

    Args:
        path: The file.
        data: Part of it that holds such bytes, for the message.
        reason: What is wrong, and the remedy.
    """
    shown = ""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = f" ({data[max(0, error.start - 20) : error.end + 10]!r})"
    return UserError(f"{path} is {reason}{shown}")


class _Recoded(io.RawIOBase):
    """A file of another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, path: Path, encoding: str) -> None:
        self._file, self._path, self._encoding = file, path, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._waiting = b""
        self._begun = False

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer; 0 at the end."""
        while not self._waiting:
            data = self._file.read(_CHUNK)
            try:
                text = self._decoder.decode(data, final=not data)
            except UnicodeError as error:
                raise UserError(
                    f"{self._path} is not {self._encoding} ({error}): name its true encoding, or save it as UTF-8"
                ) from error
            if text and not self._begun:
                self._begun, text = True, text.removeprefix("\ufeff")
            self._waiting = text.encode("utf-8", "replace")
            if not data:
                break
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count

    def close(self) -> None:
        """Closes the file below, too."""
        self._file.close()
        super().close()
