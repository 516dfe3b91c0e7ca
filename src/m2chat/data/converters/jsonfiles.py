"""Large JSON files, an item at a time: some are hundreds of megabytes, and memory is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2chat.errors import UserError


def items(path: Path, place: str = "") -> Iterator[Any]:
    """The items of a list.

    Args:
        path: A JSON file.
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
        # A list may stand in one line, of any length: only what is no list is read by lines.
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
