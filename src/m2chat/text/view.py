"""The view of a conversation from one of its replies: the request, the segments of the reply, the context picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m2chat.schema import Conversation, Segment, Turn

_SPEAKER = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Request:
    """Contents of a prompt.

    Args:
        instruction: Text of the user's newest turn.
        history: Everything else before the reply, one line per turn, oldest first; pictures stand as
            ``[picture k: caption]``.
    """

    instruction: str
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One reply of a conversation with its inputs.

    Args:
        request: Contents of the prompt.
        reply: Segments of the reply.
        targets: Index of each segment's picture in `Conversation.images`; None for text alone, and for a picture that
            is still to be drawn.
        context: Index of the context picture; None if no picture came before the reply.
    """

    request: Request
    reply: tuple[Segment, ...]
    targets: tuple[int | None, ...]
    context: int | None


def _line(turn: Turn, conversation: Conversation) -> str:
    """A turn as one line of history."""
    parts = [part if isinstance(part, str) else picture_text(part, conversation) for part in turn.parts]
    return f"{_SPEAKER[turn.role]}: {' '.join(part for part in parts if part)}"


def picture_text(index: int, conversation: Conversation) -> str:
    """The text that stands for a past picture in the prompt (the paper's y_cap)."""
    return f"[picture {index + 1}: {conversation.images[index].caption}]"


def segments_of(turn: Turn, conversation: Conversation) -> tuple[tuple[Segment, ...], tuple[int | None, ...]]:
    """Cuts a reply behind each of its pictures; text behind the last picture joins that picture's answer.

    Returns:
        Segments, at least one, and the index of each segment's picture in `Conversation.images`.
    """
    segments: list[Segment] = []
    targets: list[int | None] = []
    texts: list[str] = []
    for part in turn.parts:
        if isinstance(part, str):
            texts.append(part)
        else:
            segments.append(Segment(" ".join(texts).strip(), conversation.images[part].caption))
            targets.append(part)
            texts = []
    rest = " ".join(texts).strip()
    if rest and segments:
        last = segments[-1]
        segments[-1] = Segment(f"{last.answer} {rest}".strip(), last.caption)
    elif not segments:
        segments, targets = [Segment(rest)], [None]
    return tuple(segments), tuple(targets)


def replies_of(conversation: Conversation) -> list[int]:
    """Indices of the turns that can be trained on or evaluated: the assistant's, except an opening one."""
    return [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.loss and i > 0]


def stands_alone(conversation: Conversation, turn: int) -> bool:
    """Whether no other reply is adjacent to a reply; the parts of a story are."""
    adjacent = (*conversation.turns[turn - 1 : turn], *conversation.turns[turn + 1 : turn + 2])
    return all(other.role == "user" for other in adjacent)


def view_of(conversation: Conversation, turn: int) -> View:
    """The view from one reply.

    Args:
        conversation: Conversation.
        turn: Index of the reply in `Conversation.turns`. The number of turns stands for the next reply: its segments
            are `Conversation.to_draw`, or one empty segment.

    Raises:
        ValueError: If there is no turn of the user before that turn.
    """
    before: Sequence[Turn] = conversation.turns[:turn]
    asked = max((i for i, item in enumerate(before) if item.role == "user"), default=None)
    if asked is None:
        raise ValueError(f"conversation {conversation.id!r}: no user turn before turn {turn}")
    history = []
    for index, item in enumerate(before):
        if index != asked:
            history.append(_line(item, conversation))
        else:  # its text is the instruction; only its pictures go to the history
            history += [picture_text(part, conversation) for part in item.pictures]
    if turn < len(conversation.turns):
        reply, targets = segments_of(conversation.turns[turn], conversation)
        context = conversation.turns[turn].context
    else:
        reply = conversation.to_draw or (Segment(""),)
        targets, context = (None,) * len(reply), None
    # The reply's reference to a picture precedes the request's; without both, the newest picture counts.
    if context is None:
        context = before[asked].context
    if context is None:
        context = next((item.pictures[-1] for item in reversed(before) if item.pictures), None)
    return View(Request(before[asked].text, tuple(history)), reply, targets, context)
