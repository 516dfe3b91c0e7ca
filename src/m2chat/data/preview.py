"""Previews of shards: counts of their contents, and samples as the model receives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Literal

from m2chat.data.peek import has_replacements
from m2chat.data.shards import find_shards, open_shard
from m2chat.data.sources import BadSample, sample_of
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
_UNLIMITED = 10**9


@dataclass
class Contents:
    """Counts of some shards.

    Args:
        shards: Number of shards.
        kinds: Number of good samples by kind.
        replies: Number of replies in good samples that can be learned from or evaluated.
        bad: Number of samples that cannot be used, by reason.
        skipped: Number of files that are never read, by reason.
        not_utf8: Number of good samples whose caption file has bytes that are no UTF-8; each was read as U+FFFD.
    """

    shards: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    not_utf8: int = 0


def contents_of(path: str) -> Contents:
    """Reads every sample as training would, pictures too.

    Args:
        path: ``.tar`` shard, folder of them, or pattern.

    Raises:
        UserError: If there are no shards.
    """
    contents = Contents()
    for place in find_shards(path, "PATH"):
        shard = open_shard(place)
        contents.shards += 1
        contents.skipped.update(shard.skipped)
        for index, entry in enumerate(shard.entries):
            try:
                members = shard.members(index)
                sample = sample_of(members, entry.key, place.stem)
                contents.not_utf8 += has_replacements(members)
            except BadSample as error:
                contents.bad[error.reason] += 1
            else:
                contents.kinds[sample.kind] += 1
                contents.replies += len(entry.replies)
    return contents


def spread_samples(path: str, count: int) -> list[Sample]:
    """Good samples, spread evenly over some shards; always the same ones.

    Args:
        path: ``.tar`` shard, folder of them, or pattern.
        count: Number of samples, or fewer if there are not as many.
    """
    shards = [open_shard(place) for place in find_shards(path, "PATH")]
    places = [(shard, index) for shard in shards for index in range(len(shard.entries))]
    samples: dict[int, Sample] = {}
    for start in [number * len(places) // count for number in range(min(count, len(places)))]:
        # The first good sample from there on that is not chosen yet.
        for at in range(start, len(places)):
            if at in samples:
                continue
            shard, index = places[at]
            try:
                samples[at] = sample_of(shard.members(index), shard.entries[index].key, Path(shard.path).stem)
            except BadSample:
                continue
            break
    return [samples[at] for at in sorted(samples)]


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of the same meaning.

    Args:
        text: Decoded tokens.
        span: Their meaning.
        scored: Whether the language loss scores them; of a picture's slots, only the first.
    """

    text: str
    span: Span
    scored: bool


@dataclass(frozen=True)
class Preview:
    """A reply with all that the model receives for it.

    Args:
        sample: Conversation.
        turn: Index of the reply in its turns.
        view: Request, and pictures of the reply.
        pieces: Sequence, including what was cut from it.
        tokens: Length of the sequence.
        cut: Number of tokens that did not fit.
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


def previews_of(sample: Sample, layout: Layout) -> list[Preview]:
    """Every reply of a conversation, its first picture the target as in evaluation; training draws one at random."""
    previews = []
    for turn in replies_of(sample):
        view = view_of(sample, turn)
        encoded = layout.encode(view.request, view.reply)
        pieces = tuple(_pieces(encoded, view, layout))
        previews.append(Preview(sample, turn, view, pieces, len(encoded), encoded.cut_tokens))
    return previews


def _pieces(encoded: Encoded, view: View, layout: Layout) -> Iterator[Piece]:
    """The sequence in pieces; what was cut is taken from the sequence without a limit."""
    uncut = encoded
    if encoded.cut_tokens:
        uncut = replace(layout, max_tokens=_UNLIMITED).encode(view.request, view.reply)
    special = layout.tokenizer
    names = layout.prompts.marks
    before: list[int] = []
    tokens = _tokens(encoded, uncut, layout)
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


def _tokens(encoded: Encoded, uncut: Encoded, layout: Layout) -> Iterator[tuple[int, Span, bool]]:
    """Token, span and whether it is scored; tokens that were cut stand at their place."""
    response = next(at for at, label in enumerate(encoded.labels) if label != IGNORE)

    def span_at(at: int) -> Span:
        token = encoded.input_ids[at]
        if token in layout.prompts.marks:
            return "mark"
        for name in ("answer", "caption", "image"):
            if getattr(encoded, name)[at]:
                return name
        return "prompt" if at < response else "other"

    matcher = SequenceMatcher(None, uncut.input_ids, encoded.input_ids, autojunk=False)
    steps = matcher.get_opcodes() if uncut is not encoded else [("equal", 0, 0, 0, len(encoded))]
    for step, cut_from, cut_to, start, stop in steps:
        if step in ("delete", "replace"):
            yield from ((token, "cut", False) for token in uncut.input_ids[cut_from:cut_to])
        for at in range(start, stop):
            yield encoded.input_ids[at], span_at(at), encoded.labels[at] != IGNORE
