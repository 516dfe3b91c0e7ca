"""`m2chat data inspect`: tells what shards hold, and shows samples as the model will see them."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2chat.commands.data.seen import Seen, Span
    from m2chat.schema import Sample

_COLOURS: dict[Span, int] = {"answer": 32, "caption": 35, "image": 34, "other": 36, "mark": 33, "cut": 31}
"""Of the terminal; the prompt has none."""
_STRUCK = ";9"


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    from m2chat.commands.data.layout import add_layout

    parser = actions.add_parser(
        "inspect",
        help="count the samples of some shards, and show some as the model will see them",
        description="Reads every sample as training would, counts, and shows some with the very sequence of training: "
        "which words are answer and caption, where the picture's slots stand, what the loss scores, what was cut.",
    )
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="samples to show (default: %(default)s)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="show them on a page with their pictures instead")
    parser.add_argument("--quick", action="store_true", help="read only what is shown, and count nothing")
    add_layout(parser)
    parser.set_defaults(run=run)


@dataclass
class Contents:
    """What some shards hold.

    Args:
        shards: Number of shards.
        kinds: Good samples by kind.
        replies: Replies of the good samples that can be learned from or evaluated.
        bad: Samples that cannot be used, by reason.
        skipped: Files that were not even looked at, by reason.
    """

    shards: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def inspect(path: str) -> Contents:
    """Reads every sample as training would, pictures too.

    Args:
        path: A ``.tar`` shard, a folder of them, or a pattern.

    Raises:
        UserError: If there are no shards.
    """
    from m2chat.data.shards import find_shards, open_shard
    from m2chat.data.sources import BadSample, sample_of

    found = Contents()
    for place in find_shards(path, "PATH"):
        shard = open_shard(place)
        found.shards += 1
        found.skipped.update(shard.skipped)
        for index, entry in enumerate(shard.entries):
            try:
                sample = sample_of(shard.members(index), entry.key, place.stem)
            except BadSample as error:
                found.bad[error.reason] += 1
            else:
                found.kinds[sample.kind] += 1
                found.replies += len(entry.replies)
    return found


def some(path: str, count: int) -> list[Sample]:
    """Good samples from all over some shards, always the same ones.

    Args:
        path: A ``.tar`` shard, a folder of them, or a pattern.
        count: How many, or fewer if there are not as many.
    """
    from m2chat.data.shards import find_shards, open_shard
    from m2chat.data.sources import BadSample, sample_of

    shards = [open_shard(place) for place in find_shards(path, "PATH")]
    places = [(shard, index) for shard in shards for index in range(len(shard.entries))]
    found: dict[int, Sample] = {}
    for start in [number * len(places) // count for number in range(min(count, len(places)))]:
        for at in range(start, len(places)):
            if at in found:
                continue
            shard, index = places[at]
            try:
                found[at] = sample_of(shard.members(index), shard.entries[index].key, Path(shard.path).stem)
            except BadSample:
                continue
            break
    return [found[at] for at in sorted(found)]


def run(options: argparse.Namespace) -> None:
    """Prints the counts and the samples.

    Raises:
        UserError: If there are no shards, or the tokenizer or the configuration cannot be read.
    """
    if not options.quick:
        _print_counts(inspect(options.path))
    if options.n < 1:
        return
    from m2chat.commands.data.layout import layout_of
    from m2chat.commands.data.seen import seen_of

    layout = layout_of(options)
    replies = [reply for sample in some(options.path, options.n) for reply in seen_of(sample, layout)]
    if options.html:
        from m2chat.commands.data.sheet import contact_sheet

        options.html.write_text(contact_sheet(replies, options.path, layout.max_tokens), encoding="utf-8")
        print(f"{len(replies)} replies are shown in {options.html}")
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for reply in replies:
        print("\n" + "\n".join(told(reply, layout.max_tokens, colour=colour)))
    if replies:
        print("\n* the language loss scores it")


def _print_counts(found: Contents) -> None:
    good, bad = found.kinds.total(), found.bad.total()
    print(f"{found.shards} shards, {good + bad} samples: {good} good with {found.replies} replies, {bad} bad")
    for title, counts in (("good", found.kinds), ("bad", found.bad), ("files left out", found.skipped)):
        for name, count in counts.most_common():
            print(f"  {title}: {count:8} x {name}")


def told(reply: Seen, max_tokens: int, *, colour: bool) -> list[str]:
    """A reply as lines for the terminal.

    Args:
        reply: What to tell.
        max_tokens: Longest sequence.
        colour: Whether the terminal has colours.
    """
    from m2chat.commands.data.printing import printable

    sample = reply.sample
    pictures = [
        f"{name} {_picture(sample, index)}"
        for name, index in (("context", reply.view.context), ("target", reply.target))
        if index is not None
    ]
    facts = [f"{reply.tokens} of {max_tokens} tokens, {reply.cut} cut", *pictures]
    lines = [printable(f"{sample.id} turn {reply.turn}, {sample.kind}: {'; '.join(facts)}").replace("\n", " ")]
    for piece in reply.pieces:
        code = f"{_COLOURS[piece.span]}{_STRUCK if piece.span == 'cut' else ''}" if piece.span in _COLOURS else ""
        for number, line in enumerate(printable(piece.text).split("\n")):
            label = "" if number else f"{piece.span}{' *' if piece.scored else ''}"
            lines.append(f"  {label:10} " + (f"\x1b[{code}m{line}\x1b[0m" if colour and code else line))
    return lines


def _picture(sample: Sample, index: int) -> str:
    height, width = sample.images[index].pixels.shape[:2]
    return f"picture {index + 1}, {width} x {height}"
