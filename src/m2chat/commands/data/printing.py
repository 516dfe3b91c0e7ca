"""What data say, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text with everything escaped that a terminal would obey instead of showing it; line breaks stay."""
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
