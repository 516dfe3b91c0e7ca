"""The view of a conversation from one of its replies: the request, the segments of the reply, the context picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from m2chat.schema import Conversation, Role, Segment, Turn

_SPEAKER = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Line:
    """A line of the history as a part of a turn.

    Args:
        parts: Texts and ``[picture k: caption]`` in their order.
        role: Speaker of the turn.
        place: ``before`` the turn of the instruction, a picture of that turn (``beside`` the text), or ``behind`` it.
    """

    parts: tuple[str, ...]
    role: Role = "user"
    place: Literal["before", "beside", "behind"] = "beside"


@dataclass(frozen=True)
class Request:
    """Contents of a prompt.

    Args:
        instruction: Text of the user's newest turn.
        history: Everything else before the reply, one line per turn, oldest first; pictures stand as
            ``[picture k: caption]``.
        lines: The same lines as parts of turns, for chat templates. Without them, the whole history stands in the turn
            of the instruction.
    """

    instruction: str
    history: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        if not self.lines:
            object.__setattr__(self, "lines", tuple(Line((text,)) for text in self.history))
        if len(self.lines) != len(self.history):
            raise ValueError(f"{len(self.history)} lines of history, and {len(self.lines)} as parts of turns")

    def extended(self, line: str) -> Request:
        """The request with another line of history beside the instruction, the newest."""
        return replace(self, history=(*self.history, line), lines=(*self.lines, Line((line,))))


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


def _parts(turn: Turn, conversation: Conversation) -> tuple[str, ...]:
    """The parts of a turn that are not empty, as text."""
    parts = (part if isinstance(part, str) else picture_text(part, conversation) for part in turn.parts)
    return tuple(part for part in parts if part)


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
    history: list[str] = []
    lines: list[Line] = []
    for index, item in enumerate(before):
        if index != asked:
            lines.append(Line(_parts(item, conversation), item.role, "before" if index < asked else "behind"))
            history.append(f"{_SPEAKER[item.role]}: {' '.join(lines[-1].parts)}")
        else:  # its text is the instruction; only its pictures go to the history
            history += (pictures := [picture_text(part, conversation) for part in item.pictures])
            lines += [Line((text,)) for text in pictures]
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
    return View(Request(before[asked].text, tuple(history), tuple(lines)), reply, targets, context)
