"""What happens while a reply is being made, an event at a time.

Every event ends a bounded piece of work, a pass of the language model or a denoising step: who stops listening between
two of them has stopped the reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from m2chat.schema import Reply, Segment

Picture: TypeAlias = NDArray[np.uint8]
"""RGB, (H, W, 3), 0-255."""


@dataclass(frozen=True)
class Notice:
    """Something that the user should know.

    Args:
        text: A sentence.
        cut_tokens: How much of the conversation did not fit, if that is what it is about.
    """

    text: str
    cut_tokens: int = 0


@dataclass(frozen=True)
class Words:
    """The reply goes on.

    Args:
        segment: Of the reply, from 0.
        text: What is new; empty where a character is not complete yet.
        of: ``answer``: said to the user; ``caption``: told to the image decoder.
    """

    segment: int
    text: str
    of: Literal["answer", "caption"] = "answer"


@dataclass(frozen=True)
class Progress:
    """A picture takes shape.

    Args:
        segment: Of the reply.
        step: Denoising steps done, from 1.
        steps: Steps in all.
        preview: What it looks like by now, or None: looking costs time too.
    """

    segment: int
    step: int
    steps: int
    preview: Picture | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture is ready.

    Args:
        segment: Of the reply.
        picture: It.
        caption: What it was drawn from.
        gate: g of Eq. 3: 1 follows the words alone, 0 the context picture alone.
        cosine: c, which the gate follows.
    """

    segment: int
    picture: Picture
    caption: str
    gate: float
    cosine: float


@dataclass(frozen=True)
class Usage:
    """What a whole reply was made of, in tokens of the language model.

    Args:
        prompt_tokens: Of the conversation, as far as it was read.
        completion_tokens: Of the reply: what was said, captions, image slots and the marks between and behind them.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    """The reply is over; always the last event.

    Args:
        reply: All of it.
        stopped: Whether it was cut short; then an unfinished picture is left out.
        note: ``gate`` and ``cosine`` of each picture, ``cut_tokens``, ``seed``, ...
    """

    reply: Reply
    stopped: bool = False
    note: Mapping[str, Any] = field(default_factory=dict)


Event: TypeAlias = Notice | Words | Progress | Drawn | Usage | Finished


class Draft:
    """A reply as far as its events have told it."""

    def __init__(self) -> None:
        self._answers: dict[int, str] = {}
        self._drawn: dict[int, Drawn] = {}
        self._cut = 0
        self._usage: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Takes an event in."""
        if isinstance(event, Words) and event.of == "answer":
            self._answers[event.segment] = self._answers.get(event.segment, "") + event.text
        elif isinstance(event, Drawn):
            self._drawn[event.segment] = event
        elif isinstance(event, Notice):
            self._cut += event.cut_tokens
        elif isinstance(event, Usage):
            self._usage = asdict(event)

    def reply(self) -> Reply:
        """What there is: texts, and the pictures that are ready."""
        numbers = sorted({*self._drawn, *(k for k, text in self._answers.items() if text.strip())})
        segments = tuple(
            Segment(self._answers.get(k, ""), self._drawn[k].caption if k in self._drawn else None) for k in numbers
        )
        return Reply(segments, tuple(self._drawn[k].picture if k in self._drawn else None for k in numbers))

    def note(self) -> dict[str, Any]:
        """``gate`` and ``cosine`` of each picture, ``cut_tokens``, and of a whole reply what `Usage` tells."""
        drawn = [self._drawn[k] for k in sorted(self._drawn)]
        return {
            "gate": [event.gate for event in drawn],
            "cosine": [event.cosine for event in drawn],
            "cut_tokens": self._cut,
            **self._usage,
        }
