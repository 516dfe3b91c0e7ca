"""The files of a tar: which of them are read, and where it breaks off."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

SUFFIXES = ("json", "txt", "jpg", "jpeg", "png", "webp", "gif")
"""Files that are read at all. Nothing here is ever unpickled, executed or written to disk by its name."""
MAX_MEMBER = 64 * 2**20
"""Longest file that is read, in bytes."""
TOO_LARGE = f"file of more than {MAX_MEMBER // 2**20} MiB"
BLOCK = 512
"""Bytes of a tar's block."""
REST = "unreadable rest of the shard"


def clean_key(name: str) -> str:
    """The key of a sample: the name of its files in the tar, reduced to letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "_"


def is_read(suffix: str) -> bool:
    """Whether a file is read at all, by its suffix: all of its name behind the first dot."""
    return suffix.lower().rpartition(".")[2] in SUFFIXES


def files_of(file: IO[bytes], size: int, skipped: Counter[str]) -> Iterator[tuple[str, str, int, int]]:
    """The files of a tar that may be read; what is left out is counted.

    Args:
        file: Bytes of the tar.
        size: Number of them.
        skipped: Counter of the reasons; grows.

    Yields:
        Key, suffix, offset and size in bytes of each.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = suffix.lower()
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    skipped["link or device"] += 1
                elif not is_read(suffix):
                    skipped["unknown suffix"] += 1
                elif member.offset_data + member.size > size:
                    skipped["truncated"] += 1
                else:
                    yield f"{folder}/{stem}", suffix, member.offset_data, member.size
            file.seek(tar.offset)  # type: ignore[attr-defined]
            ends = not ends_early(file.read(BLOCK))
    except (tarfile.TarError, EOFError, ValueError):
        ends = False
    if not ends and not skipped["truncated"]:  # the file in which a tar breaks off is counted already
        skipped[REST] += 1


def ends_early(block: bytes) -> bool:
    """Whether a tar's last block (512 bytes) is no end mark, which is zeros: Python's reader stops silently there.

    The tar was cut off between two files then, or its next header is damaged.
    """
    return len(block) < BLOCK or any(block)
