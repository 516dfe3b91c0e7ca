"""How a conversation is seen from one of its replies: what was asked, what is answered, which picture counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m2chat.schema import Sample, Segment, Turn

_SPEAKER = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Request:
    """What the prompt is made of.

    Args:
        instruction: The newest thing that the user said.
        history: Everything else before the reply, a line each, oldest first; pictures stand as
            ``[picture k: caption]``.
    """

    instruction: str
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One reply of a conversation with all that it needs.

    Args:
        request: What came before it.
        reply: Its segments.
        targets: For each segment the index of its picture in `Sample.images`, None for text alone.
        context: Index of the context picture, None if no picture came before.
    """

    request: Request
    reply: tuple[Segment, ...]
    targets: tuple[int | None, ...]
    context: int | None


def _said(turn: Turn, sample: Sample) -> str:
    """A turn as one line of history."""
    parts = [part if isinstance(part, str) else picture_text(part, sample) for part in turn.parts]
    return f"{_SPEAKER[turn.role]}: {' '.join(part for part in parts if part)}"


def picture_text(index: int, sample: Sample) -> str:
    """How a past picture stands in the prompt (the paper's y_cap)."""
    return f"[picture {index + 1}: {sample.images[index].caption}]"


def segments_of(turn: Turn, sample: Sample) -> tuple[tuple[Segment, ...], tuple[int | None, ...]]:
    """Cuts a reply after each of its pictures; text behind the last picture joins its segment's answer."""
    segments: list[Segment] = []
    targets: list[int | None] = []
    words: list[str] = []
    for part in turn.parts:
        if isinstance(part, str):
            words.append(part)
        else:
            segments.append(Segment(" ".join(words).strip(), sample.images[part].caption))
            targets.append(part)
            words = []
    rest = " ".join(words).strip()
    if rest and segments:
        last = segments[-1]
        segments[-1] = Segment(f"{last.answer} {rest}".strip(), last.caption)
    elif not segments:
        segments, targets = [Segment(rest)], [None]
    return tuple(segments), tuple(targets)


def replies_of(sample: Sample) -> list[int]:
    """Indices of the turns that can be learned from or evaluated: replies that follow something said."""
    return [i for i, turn in enumerate(sample.turns) if turn.role == "assistant" and turn.loss and i > 0]


def stands_alone(sample: Sample, turn: int) -> bool:
    """Whether no other reply stands beside a reply, as the parts of a story do."""
    beside = (*sample.turns[turn - 1 : turn], *sample.turns[turn + 1 : turn + 2])
    return all(own.role == "user" for own in beside)


def view_of(sample: Sample, turn: int) -> View:
    """The view from one reply.

    Args:
        sample: The conversation.
        turn: Index of the reply in `Sample.turns`; the number of turns asks for a reply still to come.

    Raises:
        ValueError: If the user has said nothing before that turn.
    """
    before: Sequence[Turn] = sample.turns[:turn]
    asked = max((i for i, item in enumerate(before) if item.role == "user"), default=None)
    if asked is None:
        raise ValueError(f"sample {sample.id!r}: no user turn before turn {turn}")
    history = []
    for index, item in enumerate(before):
        if index != asked:
            history.append(_said(item, sample))
        else:
            history += [picture_text(part, sample) for part in item.pictures]
    seen = [part for item in before for part in item.pictures]
    own = sample.turns[turn] if turn < len(sample.turns) else Turn("assistant", ())
    reply, targets = segments_of(own, sample)
    context = own.context if own.context is not None else before[asked].context
    if context is None:
        context = seen[-1] if seen else None
    return View(Request(before[asked].text, tuple(history)), reply, targets, context)
