"""Memory of a process on the host."""

from __future__ import annotations

from pathlib import Path


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
