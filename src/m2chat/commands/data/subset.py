"""`m2chat data subset`: some samples of a data set, always the same ones."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from m2chat.errors import UserError
from m2chat.files import whole_folder

if TYPE_CHECKING:
    from m2chat.data.shards import Shard

_MOST = 2**64 - 1
"""Largest hash."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "subset",
        help="choose some samples of some shards, always the same ones",
        description="Chooses by a hash of each sample's id: the same samples whatever the number and order of the "
        "shards, and a larger choice contains every smaller one of the same seed.",
    )
    parser.add_argument("source", metavar="SRC", help="a .tar shard, a folder of them, or a pattern")
    parser.add_argument("target", metavar="DST", type=Path, help="folder for the new shards")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--count", type=int, metavar="N", help="how many samples")
    size.add_argument("--share", type=float, metavar="F", help="which share of the samples, above 0 and up to 1")
    parser.add_argument("--seed", type=int, default=0, help="another seed chooses others (default: %(default)s)")
    parser.add_argument("--without", metavar="SHARDS", help="leave out every sample that also occurs in these shards")
    parser.add_argument("--per-shard", type=int, default=1000, metavar="N", help="samples of a shard (%(default)s)")
    parser.set_defaults(run=run)


@dataclass
class Choice:
    """Which samples to keep, and what has become of all.

    Args:
        count: How many; None means no limit.
        share: Which share.
        seed: Of the choice.
        known: Prints of samples to leave out.
        kinds: Chosen samples by kind.
        left_out: Samples that could not be chosen, by reason.
    """

    count: int | None = None
    share: float = 1.0
    seed: int = 0
    known: Set[int] = frozenset()
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def run(options: argparse.Namespace) -> None:
    """Chooses and writes.

    Raises:
        UserError: If a setting or a folder does not fit.
    """
    if options.count is None and options.share is None and options.without is None:
        raise UserError("nothing to choose by: give --count N, --share F or --without SHARDS")
    share = 1.0 if options.share is None else options.share
    if not 0 < share <= 1:
        raise UserError(f"--share {share}: must be above 0 and at most 1")
    for name, value in (("count", options.count), ("per-shard", options.per_shard)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be above 0")
    choice = Choice(options.count, share, options.seed, _prints(options.without) if options.without else frozenset())
    shards = subset(options.source, options.target, choice, options.per_shard)
    print(f"{options.target}: {choice.kinds.total()} samples in {shards} shards, listed in index.json")
    for title, counts in (("chosen", choice.kinds), ("left out", choice.left_out)):
        for name, count in counts.most_common():
            print(f"  {title}: {count:8} x {name}")
    if options.count is not None and choice.kinds.total() < options.count:
        print(f"  SRC holds no {options.count} samples that can be chosen")


def subset(source: str, target: Path, choice: Choice, per_shard: int = 1000) -> int:
    """Writes the chosen samples, in the order in which they stand, their files unchanged.

    Args:
        source: A ``.tar`` shard, a folder of them, or a pattern.
        target: A new folder; it appears only when it is complete.
        choice: Which samples; its counts are filled in.
        per_shard: Samples of a new shard.

    Returns:
        Number of new shards.

    Raises:
        UserError: If there are no shards, nothing is chosen, or the target holds something already.
    """
    from m2chat.data.manifest import Listed, sha256_of, write_manifest
    from m2chat.data.shards import find_shards, open_shard, write_groups

    shards = [open_shard(path) for path in find_shards(source, "SRC")]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"DST={str(target)!r} is not empty: choose another folder or remove it")
    with whole_folder(target) as part:
        written = write_groups(_read(shards, _chosen(shards, choice), choice), part, target.name, per_shard)
        total = choice.kinds.total()
        if not total:
            raise UserError(f"SRC={source!r}: no sample was chosen, left out were {dict(choice.left_out) or 'none'}")
        sizes = [min(per_shard, total - start) for start in range(0, total, per_shard)]
        listed = [Listed(p.name, size, p.stat().st_size, sha256_of(p)) for p, size in zip(written, sizes, strict=True)]
        rule = {"count": choice.count, "share": choice.share, "seed": choice.seed}
        write_manifest(part, listed, choice.kinds, subset=rule)
    return len(written)


def _prints(path: str) -> set[int]:
    """All prints of the shards to leave out."""
    from m2chat.data.prints import prints_of_shard
    from m2chat.data.shards import find_shards, open_shard

    shards = (open_shard(place) for place in find_shards(path, "--without"))
    return {hashed for shard in shards for hashed in prints_of_shard(shard).hashes.tolist()}


def _chosen(shards: list[Shard], choice: Choice) -> list[tuple[int, int]]:
    """Shard and place of the samples to keep, in their order."""
    import numpy as np

    draws = ((number, index, draw) for number, shard in enumerate(shards) for index, draw in _draws(shard, choice))
    rows = np.fromiter(draws, dtype=[("shard", "u4"), ("index", "u4"), ("draw", "u8")])
    rows = rows[rows["draw"] <= np.uint64(min(int(choice.share * _MOST), _MOST))]
    if choice.count is not None:
        rows = rows[np.sort(np.argsort(rows["draw"], kind="stable")[: choice.count])]
    return [(int(number), int(index)) for number, index in zip(rows["shard"], rows["index"], strict=True)]


def _draws(shard: Shard, choice: Choice) -> Iterator[tuple[int, int]]:
    """Place and lot of each sample that may be chosen: the lot is the hash of its id, nothing else."""
    import numpy as np

    from m2chat.data.prints import digest, identity, prints_of_shard, record_of, without_pictures
    from m2chat.data.record import SCHEMA
    from m2chat.data.sources import PICTURES, BadSample, outline

    known: set[int] = set()
    if choice.known:
        prints = prints_of_shard(shard)
        known = set(prints.sample[np.isin(prints.hashes, np.fromiter(choice.known, np.uint64))].tolist())
    words = without_pictures(shard)
    for index, entry in enumerate(shard.entries):
        try:
            members = words.members(index)
            outline(members)
            record = record_of(members)
            if record.get("schema") != SCHEMA and not any(member[0] in PICTURES for member in entry.members):
                raise BadSample("no picture")
        except BadSample as error:
            choice.left_out[error.reason] += 1
            continue
        if index in known:
            choice.left_out["occurs in --without"] += 1
        else:
            yield index, digest("subset", str(choice.seed), identity(record, entry.key))


def _read(shards: list[Shard], places: list[tuple[int, int]], choice: Choice) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files of the chosen samples; counts them."""
    from m2chat.data.sources import BadSample

    before = ""
    for number, index in places:
        entry = shards[number].entries[index]
        try:
            if entry.key == before:  # Side by side they would be one sample.
                raise BadSample("same key as the sample before it")
            members = shards[number].members(index)
        except BadSample as error:
            choice.left_out[error.reason] += 1
            continue
        before = entry.key
        choice.kinds[entry.kind] += 1
        yield entry.key, members
