"""Statistics of a data set: kinds, turns, lengths in tokens, sizes of pictures, repetitions."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from m2chat.data.peek import UNKNOWN_SIZE, has_replacements, is_picture, peek, size_of
from m2chat.data.prints import digest, normalised
from m2chat.data.shards import find_shards, open_shard
from m2chat.data.sources import BadSample
from m2chat.schema import Sample
from m2chat.text import Layout
from m2chat.text.view import replies_of, view_of

_LENGTHS = ("request", "answer", "caption", "sequence")
"""The user's newest turn, the text of a reply, the caption of a picture; prompt and reply before anything is cut."""


class Histogram(Counter[int]):
    """Counts of each number: enough for exact quantiles, and small for any amount of data."""

    def quantile(self, share: float) -> int:
        """The least number that at least this share of the numbers does not exceed; 0 if there are none."""
        rest = share * self.total()
        for value in sorted(self):
            rest -= self[value]
            if rest <= 0:
                return value
        return 0

    def over(self, limit: int) -> float:
        """Share of the numbers above a limit, in [0, 1]."""
        return _share(sum(count for value, count in self.items() if value > limit), self.total())

    @property
    def summary(self) -> dict[str, Any]:
        """Number, median, 95th percentile and maximum."""
        largest = max(self, default=0)
        return {"count": self.total(), "median": self.quantile(0.5), "p95": self.quantile(0.95), "max": largest}


@dataclass
class Stats:
    """Counts over all samples.

    Args:
        max_tokens: Longest sequence of the run.
        shards: Number of shards.
        kinds: Number of good samples by kind.
        bad: Number of samples and pictures that cannot be used, by reason.
        turns: Turns of a conversation.
        pictures: Pictures of a reply that can be learned from.
        tokens: Lengths in tokens, by what is measured.
        sides: Shorter side of the pictures as they are stored, in pixels.
        original_sides: Shorter side before any resizing, in pixels, where it is recorded.
        sizes: Number of pictures by width and height as they are stored.
        captions: Number of occurrences of each caption, by its hash; empty ones are left out.
        user_texts: Number of occurrences of each text of a user, by its hash; caption pairs have none.
        images: Number of occurrences of each picture, by the hash of its file.
        uncaptioned: Number of pictures without a caption.
        not_utf8: Number of good samples whose caption file has bytes that are no UTF-8; each was read as U+FFFD.
    """

    max_tokens: int
    shards: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    turns: Histogram = field(default_factory=Histogram)
    pictures: Histogram = field(default_factory=Histogram)
    tokens: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in _LENGTHS})
    sides: Histogram = field(default_factory=Histogram)
    original_sides: Histogram = field(default_factory=Histogram)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    captions: Counter[int] = field(default_factory=Counter)
    user_texts: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    uncaptioned: int = 0
    not_utf8: int = 0

    def record(self) -> dict[str, Any]:
        """The statistics as JSON values; shares are in [0, 1]."""
        tokens: dict[str, dict[str, Any]] = {name: histogram.summary for name, histogram in self.tokens.items()}
        sequences = self.tokens["sequence"]
        tokens["sequence"] |= {"max_tokens": self.max_tokens, "share_over": sequences.over(self.max_tokens)}
        return {
            "shards": self.shards,
            "samples": self.kinds.total(),
            "kinds": dict(self.kinds.most_common()),
            "bad": dict(self.bad.most_common()),
            "turns": self.turns.summary,
            "replies": self.pictures.total(),
            "pictures_per_reply": {str(number): self.pictures[number] for number in sorted(self.pictures)},
            "tokens": tokens,
            "pictures": self.sizes.total(),
            "shorter_side": self.sides.summary,
            "original_shorter_side": self.original_sides.summary,
            "sizes": [[width, height, count] for (width, height), count in self.sizes.most_common(5)],
            **({"captions_not_utf8": self.not_utf8} if self.not_utf8 else {}),
            "share_without_caption": _share(self.uncaptioned, self.uncaptioned + self.captions.total()),
            "share_repeated_captions": _repeated(self.captions),
            "share_repeated_images": _repeated(self.images),
            "user_texts": {"count": self.user_texts.total(), "different": len(self.user_texts)},
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _repeated(counts: Counter[int]) -> float:
    """Share of the items that occurred before, in [0, 1]."""
    return _share(counts.total() - len(counts), counts.total())


def gather(path: str, layout: Layout) -> Stats:
    """Counts over all samples; pictures are not decoded.

    Args:
        path: ``.tar`` shard, folder of them, or pattern.
        layout: Layout with the tokenizer that counts.

    Raises:
        UserError: If there are no shards.
    """
    stats = Stats(layout.max_tokens)
    uncut = replace(layout, max_tokens=sys.maxsize)
    for place in find_shards(path, "PATH"):
        shard = open_shard(place)
        stats.shards += 1
        for index, entry in enumerate(shard.entries):
            try:
                members = shard.members(index)
                sample = peek(members, entry.key, place.stem)
                stats.not_utf8 += has_replacements(members)
            except BadSample as error:
                stats.bad[error.reason] += 1
                continue
            _count_text(stats, sample, uncut)
            for data in (data for suffix, data in members.items() if is_picture(suffix)):
                if (size := size_of(data)) is None:
                    stats.bad["undecodable picture"] += 1
                    continue
                stats.sides[min(size)] += 1
                stats.sizes[size[::-1]] += 1
                stats.images[digest("picture", data)] += 1
    return stats


def _count_text(stats: Stats, sample: Sample, layout: Layout) -> None:
    """Counts a sample's turns and tokens, and the facts that its JSON states about its pictures."""
    stats.kinds[sample.kind] += 1
    stats.turns[len(sample.turns)] += 1
    if sample.kind != "caption":
        for text in (turn.text for turn in sample.turns if turn.role == "user" and turn.text):
            stats.user_texts[digest("user", normalised(text))] += 1
    for turn in replies_of(sample):
        view = view_of(sample, turn)
        stats.pictures[sum(picture is not None for picture in view.targets)] += 1
        stats.tokens["request"][len(layout.tokenizer.encode(view.request.instruction))] += 1
        if answer := sum(len(layout.tokenizer.encode(segment.answer)) for segment in view.reply):
            stats.tokens["answer"][answer] += 1
        stats.tokens["sequence"][len(layout.encode(view.request, view.reply))] += 1
    for image in sample.images:
        if image.original_size != UNKNOWN_SIZE:
            stats.original_sides[min(image.original_size)] += 1
        if image.caption:
            stats.tokens["caption"][len(layout.tokenizer.encode(image.caption))] += 1
            stats.captions[digest("caption", normalised(image.caption))] += 1
        else:
            stats.uncaptioned += 1
