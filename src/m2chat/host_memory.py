"""Memory of a process on the host."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Parameters of glibc's `mallopt`."""


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


def return_large_blocks(size: int) -> None:
    """Lets glibc give blocks of memory of some size and more back to the system as soon as they are freed.

    By itself it learns to cut blocks of up to 32 MB from one piece, and keeps them for later. Lifted copies of weights,
    which are dropped, then leave holes between the activations that are kept: 2.3 GB of them in a training step of the
    paper's UNet. Other systems are left as they are.

    Args:
        size: Size of the smallest such block, in bytes.
    """
    _tune(_MMAP_THRESHOLD, size)


def keep_few_heaps() -> None:
    """Lets glibc share two heaps among all threads, instead of eight for each core, each of which keeps memory."""
    _tune(_ARENA_MAX, 2)


def _tune(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # other systems have no such function
        ctypes.CDLL(None).mallopt(parameter, value)


def return_free_memory() -> None:
    """Gives what is free in the allocator's heaps back to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
