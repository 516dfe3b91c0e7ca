"""Descriptions of pictures as conversations: what stage 0 trains on, made of caption pairs."""

from __future__ import annotations

from dataclasses import replace

from m2chat.schema import Sample, Turn
from m2chat.text.layout import DESCRIBE
from m2chat.text.view import segments_of


def as_description(sample: Sample, turn: int, target: int | None = None) -> tuple[Sample, int]:
    """The request to describe the picture of a reply, answered by its caption.

    The picture is looked at and stands in no turn: its caption would be in the prompt otherwise.

    Args:
        sample: Conversation.
        turn: Index of the reply in its turns.
        target: Segment of the reply with the picture; None for the first that has one.

    Returns:
        The description and the index of the reply in it; both as they were if the reply has no picture with a caption.
    """
    _, pictures = segments_of(sample.turns[turn], sample)
    index = pictures[target] if target is not None else next((p for p in pictures if p is not None), None)
    if index is None or not (image := sample.images[index]).caption:
        return sample, turn
    turns = (Turn("user", (DESCRIBE,), context=0), Turn("assistant", (image.caption,)))
    name = sample.id if turn == 1 else f"{sample.id}:{turn}"
    return replace(sample, id=name, turns=turns, images=(image,)), 1
