"""Lessons from conversations whose replies are silent: what a request means, never how it is answered."""

from __future__ import annotations

from dataclasses import replace

from m2chat.commands.backbones.corpus import Lesson
from m2chat.data.micro_talk import Maker
from m2chat.schema import Sample
from m2chat.text.view import replies_of, view_of
from m2chat.world import Scene


def silent(sample: Sample) -> Sample:
    """The conversation without any word of the assistant's: its pictures remain."""
    turns = tuple(
        turn if turn.role == "user" else replace(turn, parts=tuple(p for p in turn.parts if isinstance(p, int)))
        for turn in sample.turns
    )
    return replace(sample, turns=turns)


def request(maker: Maker) -> Lesson:
    """A request of a conversation, with what came before it, and the caption of the picture that it asks for."""
    kind = maker.rng.choice(("instruct", "edit", "edit", "dialogue", "dialogue", "dialogue", "story"))
    sample = silent(getattr(maker, kind)().sample(kind, kind, 0))
    drawn = [turn for turn in replies_of(sample) if sample.turns[turn].pictures]
    view = view_of(sample, maker.rng.choice(drawn))
    context = None if view.context is None else Scene.from_attributes(sample.meta["scenes"][view.context])
    return Lesson(view.request, view.reply[0].caption or "", context)
