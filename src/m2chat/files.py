"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside a file to write it to; it gets its name only when the block ends without an error.

    Nobody ever sees a part of it, and an older file of that name stays until then. Several processes, on several
    machines too, may write the same file; the last to end wins.

    Args:
        path: The file; its folder exists.

    Yields:
        A path that nobody else has, ending in ``.part``.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | Iterable[str]) -> None:
    """Writes a file by `whole_file`.

    Args:
        path: The file; its folder exists.
        data: Content of the file: bytes, or texts that are written as UTF-8 one behind the other, with lone surrogates
            replaced and line ends as they are.
    """
    with whole_file(path) as part:
        if isinstance(data, bytes):
            part.write_bytes(data)
        else:
            with part.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.writelines(data)
