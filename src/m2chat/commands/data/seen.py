"""Samples as the model sees them: the very sequence of training, told in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal

from m2chat.schema import Sample
from m2chat.text import Encoded, Layout, View, view_of
from m2chat.text.layout import IGNORE
from m2chat.text.view import replies_of

Span = Literal["prompt", "answer", "caption", "image", "other", "mark", "cut"]
SPANS: dict[Span, str] = {
    "prompt": "template, request and history",
    "answer": "the answer",
    "caption": "the caption of the target picture",
    "image": "its slots, where the M³Adapter reads",
    "other": "the reply's other segments",
    "mark": "special tokens",
    "cut": "what did not fit",
}
_ENDLESS = 10**9


@dataclass(frozen=True)
class Piece:
    """Some tokens side by side that mean the same.

    Args:
        text: What they say.
        span: What they are.
        scored: Whether the language loss scores them; of a picture's slots, the first.
    """

    text: str
    span: Span
    scored: bool


@dataclass(frozen=True)
class Seen:
    """A reply with all that the model is shown of it.

    Args:
        sample: The conversation.
        turn: Index of the reply in its turns.
        view: What it answers, and its pictures.
        pieces: The sequence, with what was cut from it.
        tokens: Its length.
        cut: Tokens that did not fit.
    """

    sample: Sample
    turn: int
    view: View
    pieces: tuple[Piece, ...]
    tokens: int
    cut: int

    @property
    def target(self) -> int | None:
        """Index of the picture to draw, None for text alone."""
        return next((picture for picture in self.view.targets if picture is not None), None)


def seen_of(sample: Sample, layout: Layout) -> list[Seen]:
    """Every reply of a conversation, its first picture the target, as in evaluation; training draws by lot."""
    found = []
    for turn in replies_of(sample):
        view = view_of(sample, turn)
        encoded = layout.encode(view.request, view.reply)
        pieces = tuple(_pieces(encoded, view, layout))
        found.append(Seen(sample, turn, view, pieces, len(encoded), encoded.cut_tokens))
    return found


def _pieces(encoded: Encoded, view: View, layout: Layout) -> Iterator[Piece]:
    whole = encoded
    if encoded.cut_tokens:
        whole = replace(layout, max_tokens=_ENDLESS).encode(view.request, view.reply)
    special = layout.tokenizer
    names = {special.bos_id: "<s>", special.eos_id: "</s>", special.ic_id: "<|IC|>"}
    before: list[int] = []
    tokens = _tokens(encoded, whole, layout)
    for (span, scored, slot), group in groupby(tokens, key=lambda token: (*token[1:], token[0] == special.img_id)):
        ids = [token[0] for token in group]
        if slot:
            text = f"<|img|> × {len(ids)}"
        elif span == "mark":
            text = "".join(names[token] for token in ids)
        else:
            # A prompt that was cut in two keeps the blank at the cut: the tokenizer drops one in front.
            within = before if span in ("prompt", "cut") else []
            text = special.decode([*within, *ids])[len(special.decode(within)) :]
        before = ids[-1:] if span in ("prompt", "cut") else []
        yield Piece(text, span, scored)


def _tokens(encoded: Encoded, whole: Encoded, layout: Layout) -> Iterator[tuple[int, Span, bool]]:
    """Token, span and whether it is scored, those that were cut at their place."""
    special = layout.tokenizer
    response = next(at for at, label in enumerate(encoded.labels) if label != IGNORE)

    def span_at(at: int) -> Span:
        token = encoded.input_ids[at]
        if token in (special.bos_id, special.eos_id, special.ic_id):
            return "mark"
        for name in ("answer", "caption", "image"):
            if getattr(encoded, name)[at]:
                return name
        return "prompt" if at < response else "other"

    matcher = SequenceMatcher(None, whole.input_ids, encoded.input_ids, autojunk=False)
    steps = matcher.get_opcodes() if whole is not encoded else [("equal", 0, 0, 0, len(encoded))]
    for step, cut_from, cut_to, start, stop in steps:
        if step in ("delete", "replace"):
            yield from ((token, "cut", False) for token in whole.input_ids[cut_from:cut_to])
        for at in range(start, stop):
            yield encoded.input_ids[at], span_at(at), encoded.labels[at] != IGNORE
