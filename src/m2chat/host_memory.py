"""Memory of a process on the host."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Parameters of glibc's `mallopt`."""
_LARGE = 2**20
"""Bytes from which a block of memory goes back to the system as soon as it is free."""


def anonymous_bytes(process: int | str = "self") -> int | None:
    """Bytes that a process has to itself (RssAnon): files that it maps do not count.

    Args:
        process: Number of the process; ``self`` for this one.

    Returns:
        The bytes; None where the system does not report them, or the process has ended.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = [line.split() for line in status.splitlines()]
    return next((1024 * int(words[1]) for words in found if words and words[0] == "RssAnon:"), None)


def keep_little_memory() -> None:
    """Makes the system's allocator return the memory of pictures and long texts when they are done with.

    By default, glibc keeps blocks of up to 32 MB for later, in eight heaps for each core.
    """
    with suppress(OSError, AttributeError):  # other systems have no such functions
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_ARENA_MAX, 2)


def return_free_memory() -> None:
    """Gives what is free in the allocator's heaps back to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
