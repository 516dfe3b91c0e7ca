"""Work in bounded pieces: who shares a pipeline takes turns, and what is stopped ends before its next piece."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from threading import Event
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_turns(
    pieces: Generator[Piece, None, Result], lock: AbstractContextManager[Any], stop: Event | None = None
) -> Generator[Piece, None, Result | None]:
    """Does some work a piece at a time, until it is done or stopped.

    Args:
        pieces: The work: a pass of the language model or a denoising step between two yields.
        lock: Held for one piece only, never while anybody listens: one that nobody listens to blocks none.
        stop: Set from any thread, it ends the work before its next piece.

    Yields:
        What the pieces yield.

    Returns:
        What the work came to; None if it was stopped.
    """
    while stop is None or not stop.is_set():
        with lock:
            try:
                piece = next(pieces)
            except StopIteration as end:
                result: Result = end.value
                return result
        yield piece
    return None


def finish(pieces: Generator[Any, None, Result]) -> Result:
    """Does all of the work; returns what it came to."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
