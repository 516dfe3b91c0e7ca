"""`m2chat data inspect`: tells what shards hold."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser("inspect", help="read every sample of some shards and count them")
    parser.add_argument("path", help="a .tar shard, a folder of them, or a pattern")
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


def run(options: argparse.Namespace) -> None:
    """Prints the counts."""
    found = inspect(options.path)
    good, bad = found.kinds.total(), found.bad.total()
    print(f"{found.shards} shards, {good + bad} samples: {good} good with {found.replies} replies, {bad} bad")
    for title, counts in (("good", found.kinds), ("bad", found.bad), ("files left out", found.skipped)):
        for name, count in counts.most_common():
            print(f"  {title}: {count:8} x {name}")
