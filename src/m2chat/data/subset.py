"""Subsets of a data set: some of its samples, chosen by a hash of each id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2chat.data.manifest import Listed, write_manifest
from m2chat.data.prints import digest, identity, prints_of_shard, without_pictures
from m2chat.data.record import SCHEMA
from m2chat.data.shards import Group, Shard, find_shards, open_shard, write_groups
from m2chat.data.sources import BadSample, json_of, outline, pair_picture
from m2chat.errors import UserError
from m2chat.files import whole_folder

_LARGEST = 2**64 - 1
"""Largest hash."""


@dataclass
class Choice:
    """The rule of a subset, and counts of its result.

    Args:
        count: Number of samples; None means no limit.
        share: Share of the samples, above 0 and at most 1.
        seed: Seed of the choice.
        known: Prints of samples to leave out.
        kinds: Number of chosen samples by kind.
        left_out: Number of samples that could not be chosen, by reason.
    """

    count: int | None = None
    share: float = 1.0
    seed: int = 0
    known: Set[int] = frozenset()
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def subset(source: str, target: Path, choice: Choice, per_shard: int = 1000) -> int:
    """Writes the chosen samples in their order, with unchanged files.

    Args:
        source: ``.tar`` shard, folder of them, or pattern.
        target: New folder; it appears only when it is complete.
        choice: Rule; its counts are filled in.
        per_shard: Samples per new shard.

    Returns:
        Number of new shards.

    Raises:
        UserError: If there are no shards, nothing is chosen, or the target is not empty.
    """
    shards = [open_shard(path) for path in find_shards(source, "SRC")]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"DST={str(target)!r} is not empty: choose another folder or remove it")
    with whole_folder(target) as part:
        written = write_groups(_read(shards, _chosen(shards, choice), choice), part, target.name, per_shard)
        total = choice.kinds.total()
        if not total:
            raise UserError(f"SRC={source!r}: no sample was chosen, left out were {dict(choice.left_out) or 'none'}")
        sizes = [min(per_shard, total - start) for start in range(0, total, per_shard)]
        listed = [Listed.of(path, size) for path, size in zip(written, sizes, strict=True)]
        rule = {"count": choice.count, "share": choice.share, "seed": choice.seed}
        write_manifest(part, listed, choice.kinds, subset=rule)
    return len(written)


def prints_in(path: str, setting: str) -> set[int]:
    """All prints of some shards.

    Args:
        path: ``.tar`` shard, folder of them, or pattern.
        setting: Name of the setting, for errors.
    """
    shards = (open_shard(place) for place in find_shards(path, setting))
    return {hashed for shard in shards for hashed in prints_of_shard(shard).hashes.tolist()}


def _chosen(shards: list[Shard], choice: Choice) -> list[tuple[int, int]]:
    """Shard and index of the samples to keep, in their order."""
    hashes = (
        (number, index, hashed) for number, shard in enumerate(shards) for index, hashed in _hashes(shard, choice)
    )
    rows = np.fromiter(hashes, dtype=[("shard", "u4"), ("index", "u4"), ("hash", "u8")])
    rows = rows[rows["hash"] <= np.uint64(min(int(choice.share * _LARGEST), _LARGEST))]
    if choice.count is not None:
        # The smallest hashes, back in the order of the shards: a larger count contains every smaller one.
        rows = rows[np.sort(np.argsort(rows["hash"], kind="stable")[: choice.count])]
    return [(int(number), int(index)) for number, index in zip(rows["shard"], rows["index"], strict=True)]


def _hashes(shard: Shard, choice: Choice) -> Iterator[tuple[int, int]]:
    """Index and hash of each sample that may be chosen; the hash depends on seed and id alone."""
    known: set[int] = set()
    if choice.known:
        prints = prints_of_shard(shard)
        known = set(prints.sample[np.isin(prints.hashes, np.fromiter(choice.known, np.uint64))].tolist())
    texts = without_pictures(shard)
    for index, entry in enumerate(shard.entries):
        try:
            members = texts.members(index)
            outline(members)
            record = json_of(members)
            if record.get("schema") != SCHEMA:
                pair_picture([suffix for suffix, _, _ in entry.members])
        except BadSample as error:
            choice.left_out[error.reason] += 1
            continue
        if index in known:
            choice.left_out["occurs in --without"] += 1
        else:
            yield index, digest("subset", str(choice.seed), identity(record, entry.key))


def _read(shards: list[Shard], places: list[tuple[int, int]], choice: Choice) -> Iterator[Group]:
    """Key and files of the chosen samples; counts them."""
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
