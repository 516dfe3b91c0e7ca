"""Texts of the data, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text with all control characters escaped but line breaks, so that the terminal shows them and does not obey."""
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
