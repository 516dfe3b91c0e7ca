"""Events of a reply while it is generated, and the loop that yields them.

Every event ends a bounded piece of work, a pass of the language model or a denoising step. A consumer that stops
iterating between two events stops the reply.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from m2chat.schema import Picture, Reply, Segment

FinishReason = Literal["stop", "length"]
"""End of a reply: the model's, or that of a limit that has cut an answer or a caption."""
Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Notice:
    """A message to the user about the conversation.

    Args:
        text: Sentence.
        cut_tokens: Tokens of the conversation that did not fit, if the message is about that.
        limited: Text of the reply that its limit has cut, if the message is about that. A caption that was cut is not
            drawn.
    """

    text: str
    cut_tokens: int = 0
    limited: Literal["", "answer", "caption"] = ""


@dataclass(frozen=True)
class Words:
    """New text of a reply.

    Args:
        segment: Index of the segment within the reply.
        text: New text; empty while a character is incomplete.
        of: ``answer``: text for the user; ``caption``: caption of the picture to draw.
    """

    segment: int
    text: str
    of: Literal["answer", "caption"] = "answer"


@dataclass(frozen=True)
class Progress:
    """A denoising step of a picture is done.

    Args:
        segment: Index of the segment within the reply.
        step: Denoising steps done, from 1.
        steps: Denoising steps in all.
        preview: Estimate of the finished picture; None at most steps, since decoding it takes time.
    """

    segment: int
    step: int
    steps: int
    preview: Picture | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture is finished.

    Args:
        segment: Index of the segment within the reply.
        picture: RGB, (H, W, 3), 0-255.
        caption: Caption from which it was drawn.
        gate: g of Eq. 3, 0-1: 1 follows the text alone, 0 the context picture alone.
        cosine: Cosine similarity c of Eq. 3, from which the gate is computed.
    """

    segment: int
    picture: Picture
    caption: str
    gate: float
    cosine: float


@dataclass(frozen=True)
class Usage:
    """Tokens of the language model behind a complete reply.

    Args:
        prompt_tokens: Tokens of the conversation after cutting.
        completion_tokens: Tokens of the reply: answers, captions, image tokens, ``<|IC|>`` and ``</s>``.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    """The reply is over; always the last event.

    Args:
        reply: Texts and finished pictures.
        stopped: Whether the reply was stopped; an unfinished picture is then left out.
        note: ``gate`` and ``cosine`` of each picture, ``cut_tokens``, ``seed``, ``finish_reason``, ...
    """

    reply: Reply
    stopped: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finish_reason(self) -> FinishReason:
        """``length`` if a limit has cut an answer or a caption, else ``stop``."""
        return finish_reason(self.note)


Event: TypeAlias = Notice | Words | Progress | Drawn | Usage | Finished


def finish_reason(note: Mapping[str, Any]) -> FinishReason:
    """End of a reply, from its note."""
    return "length" if note.get("finish_reason") == "length" else "stop"


class PartialReply:
    """Accumulates the events of a reply."""

    def __init__(self) -> None:
        self._answers: dict[int, str] = {}
        self._drawn: dict[int, Drawn] = {}
        self._cut = 0
        self._is_limited = False
        self._usage: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Adds an event."""
        if isinstance(event, Words) and event.of == "answer":
            self._answers[event.segment] = self._answers.get(event.segment, "") + event.text
        elif isinstance(event, Drawn):
            self._drawn[event.segment] = event
        elif isinstance(event, Notice):
            self._cut += event.cut_tokens
            self._is_limited |= bool(event.limited)
        elif isinstance(event, Usage):
            self._usage = asdict(event)

    def reply(self) -> Reply:
        """The texts so far, and the finished pictures."""
        numbers = sorted({*self._drawn, *(k for k, text in self._answers.items() if text.strip())})
        segments = tuple(
            Segment(self._answers.get(k, ""), self._drawn[k].caption if k in self._drawn else None) for k in numbers
        )
        return Reply(segments, tuple(self._drawn[k].picture if k in self._drawn else None for k in numbers))

    def note(self) -> dict[str, Any]:
        """``gate`` and ``cosine`` of each picture, ``cut_tokens``, and the fields of `Usage` for a complete reply.

        ``finish_reason`` is ``length`` if a limit has cut an answer or a caption, and absent otherwise.
        """
        drawn = [self._drawn[k] for k in sorted(self._drawn)]
        return {
            "gate": [event.gate for event in drawn],
            "cosine": [event.cosine for event in drawn],
            "cut_tokens": self._cut,
            **self._usage,
            **({"finish_reason": "length"} if self._is_limited else {}),
        }


def in_turns(
    pieces: Generator[Piece, None, Result],
    lock: AbstractContextManager[Any],
    stop: threading.Event | None = None,
) -> Generator[Piece, None, Result | None]:
    """Runs work piece by piece until it is done or stopped, sharing a lock with others.

    Args:
        pieces: Work; between two yields lies a pass of the language model or a denoising step.
        lock: Lock that is held during a piece, and released while the consumer handles what was yielded: a slow or
            absent consumer blocks no other work.
        stop: Event that ends the work before its next piece; may be set from any thread.

    Yields:
        What the pieces yield.

    Returns:
        Result of the work; None if it was stopped.
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
    """Runs work to its end and returns its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
