"""`m2chat data stats`: the numbers of a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2chat.schema import Sample
    from m2chat.text import Layout


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    from m2chat.commands.data.layout import add_layout

    parser = actions.add_parser(
        "stats",
        help="the numbers of some shards: kinds, turns, lengths, sizes, duplicates",
        description="Counts without decoding pictures; `m2chat data validate` tells which cannot be decoded.",
    )
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too, for programs")
    add_layout(parser)
    parser.set_defaults(run=run)


class Histogram(Counter[int]):
    """How often each number occurs: enough for exact quantiles, and small however many there are."""

    def quantile(self, share: float) -> int:
        """The least number that so large a share does not exceed; 0 if there are none."""
        rest = share * self.total()
        for value in sorted(self):
            rest -= self[value]
            if rest <= 0:
                return value
        return 0

    def over(self, limit: int) -> float:
        """Share of the numbers above a limit."""
        return _share(sum(count for value, count in self.items() if value > limit), self.total())

    @property
    def summary(self) -> dict[str, Any]:
        """Number, median, 95th percentile and maximum."""
        largest = max(self, default=0)
        return {"count": self.total(), "median": self.quantile(0.5), "p95": self.quantile(0.95), "max": largest}


_LENGTHS = ("request", "answer", "caption", "sequence")
"""The newest turn of the user, the words of a reply, a picture's caption; prompt and reply before anything is cut."""


@dataclass
class Stats:
    """What is counted.

    Args:
        max_tokens: Longest sequence of the run.
        shards: Number of shards.
        kinds: Good samples by kind.
        bad: Samples and pictures that cannot be used, by reason.
        turns: Turns of a conversation.
        pictures: Pictures of a reply that can be learned from.
        tokens: Lengths, by what is measured.
        sides: Shorter side of the pictures as they are stored, in pixels.
        original_sides: The same before any resizing, of those where it is noted.
        sizes: Pictures by width and height as they are stored.
        captions: How often each caption occurs, by its hash; empty ones are left out.
        images: How often each picture occurs, by the hash of its file.
        uncaptioned: Pictures without a caption.
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
    images: Counter[int] = field(default_factory=Counter)
    uncaptioned: int = 0

    def record(self) -> dict[str, Any]:
        """The numbers, for programs; shares are from 0 to 1."""
        tokens: dict[str, dict[str, Any]] = {name: found.summary for name, found in self.tokens.items()}
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
            "share_without_caption": _share(self.uncaptioned, self.uncaptioned + self.captions.total()),
            "share_repeated_captions": _repeated(self.captions),
            "share_repeated_images": _repeated(self.images),
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _repeated(counts: Counter[int]) -> float:
    """Share that an earlier one says already."""
    return _share(counts.total() - len(counts), counts.total())


def gather(path: str, layout: Layout) -> Stats:
    """Counts over all samples.

    Args:
        path: A ``.tar`` shard, a folder of them, or a pattern.
        layout: What counts tokens.

    Raises:
        UserError: If there are no shards.
    """
    from m2chat.data.peek import is_picture, peek, size_of
    from m2chat.data.prints import digest
    from m2chat.data.shards import find_shards, open_shard
    from m2chat.data.sources import BadSample

    stats = Stats(layout.max_tokens)
    endless = replace(layout, max_tokens=sys.maxsize)
    for place in find_shards(path, "PATH"):
        shard = open_shard(place)
        stats.shards += 1
        for index, entry in enumerate(shard.entries):
            try:
                members = shard.members(index)
                sample = peek(members, entry.key, place.stem)
            except BadSample as error:
                stats.bad[error.reason] += 1
                continue
            _count(stats, sample, endless)
            for data in (data for suffix, data in members.items() if is_picture(suffix)):
                if (size := size_of(data)) is None:
                    stats.bad["undecodable picture"] += 1
                    continue
                stats.sides[min(size)] += 1
                stats.sizes[size[::-1]] += 1
                stats.images[digest("picture", data)] += 1
    return stats


def _count(stats: Stats, sample: Sample, layout: Layout) -> None:
    """Counts a sample's turns and words, and what is noted of its pictures."""
    from m2chat.data.peek import UNKNOWN_SIZE
    from m2chat.data.prints import digest, normalised
    from m2chat.text.view import replies_of, view_of

    stats.kinds[sample.kind] += 1
    stats.turns[len(sample.turns)] += 1
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


def run(options: argparse.Namespace) -> None:
    """Prints the table.

    Raises:
        UserError: If there are no shards, or the tokenizer or the configuration cannot be read.
    """
    from m2chat.commands.data.layout import layout_of

    record = gather(options.path, layout_of(options)).record()
    print("\n".join(table(record)))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(record: dict[str, Any]) -> list[str]:
    """The numbers as lines, a fact a line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in record["kinds"].items())
    lines = [f"{'samples':22}{record['samples']} in {record['shards']} shards: {kinds or 'none that is good'}"]
    lines += [f"{'bad':22}{count} x {reason}" for reason, count in record["bad"].items()]
    replies = record["replies"]
    shares = (f"{count / replies:.1%} with {number}" for number, count in record["pictures_per_reply"].items())
    lines += [f"{'replies':22}{replies}; pictures: {', '.join(shares)}", ""]
    lines.append(f"{'':22}{'median':>8}{'p95':>8}{'max':>8}")
    rows = [("turns", record["turns"])]
    rows += [(f"tokens: {name}", found) for name, found in record["tokens"].items()]
    rows += [("shorter side", record["shorter_side"]), ("  before resizing", record["original_shorter_side"])]
    lines += [
        f"{name:22}{found['median']:>8}{found['p95']:>8}{found['max']:>8}" for name, found in rows if found["count"]
    ]
    sequence = record["tokens"]["sequence"]
    sizes = (f"{width} x {height} ({count})" for width, height, count in record["sizes"])
    return [
        *lines,
        "",
        f"{'too long':22}{sequence['share_over']:.1%} of the sequences have more than {sequence['max_tokens']} tokens",
        f"{'pictures':22}{record['pictures']}; most frequent sizes: {', '.join(sizes)}",
        f"{'without caption':22}{record['share_without_caption']:.1%} of the pictures",
        f"{'repeated':22}{record['share_repeated_captions']:.1%} of the captions, "
        f"{record['share_repeated_images']:.1%} of the pictures",
    ]
