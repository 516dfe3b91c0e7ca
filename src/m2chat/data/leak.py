"""No leak: what a model is validated or tested on must not occur in what it is trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2chat.data.dataset import SourceConfig
from m2chat.data.prints import WHAT, Prints, are_kept, identity, prints_of_shard, record_of
from m2chat.data.shards import find_shards, open_shard
from m2chat.errors import UserError

log = logging.getLogger(__name__)

_SLOW = 2**30
"""Bytes to read from which on the user is told why nothing seems to happen."""


@dataclass(frozen=True)
class Place:
    """Where a sample lies.

    Args:
        shard: The tar.
        index: Place of the sample in `Shard.entries`.
    """

    shard: Path
    index: int

    def __str__(self) -> str:
        shard = open_shard(self.shard)
        key = shard.entries[self.index].key
        return f"{identity(record_of(shard.members(self.index)), key)!r} (key {key} of {self.shard})"


def refuse_leaks(train: Sequence[SourceConfig], held_out: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Raises if a sample to validate or to test on also occurs in training.

    Args:
        train: Sources to train on; those of weight 0 are left out.
        held_out: Sources to evaluate on, by the name of their setting.

    Raises:
        UserError: With the first leak, the number of all, and what to do.
    """
    used = [source for source in train if source.weight > 0]
    if not used or not any(held_out.values()):
        return
    _announce([*used, *(source for sources in held_out.values() for source in sources)])
    for setting, sources in held_out.items():
        owners: dict[int, tuple[Place, SourceConfig]] = {}
        for source in sources:
            for shard, prints in _prints(source, setting):
                for hashed, sample in zip(prints.hashes.tolist(), prints.sample.tolist(), strict=True):
                    owners.setdefault(hashed, (Place(shard, sample), source))
        leaked: set[Place] = set()
        first = ""
        known = np.array(list(owners), np.uint64)
        for source in used:
            for shard, prints in _prints(source, "train"):
                for at in np.flatnonzero(np.isin(prints.hashes, known)).tolist():
                    place, owner = owners[int(prints.hashes[at])]
                    first = first or (
                        f"{setting} sample {place} has the {WHAT[prints.what[at]]} of train sample "
                        f"{Place(shard, int(prints.sample[at]))}. To train without it: `m2chat data subset "
                        f"{source.path} CLEAN --without {owner.path}`, and give CLEAN as the path of source "
                        f"{source.name!r}; if it is meant, set data.check_leaks to false"
                    )
                    leaked.add(place)
        if leaked:
            raise UserError(
                f"train and {setting} share {len(leaked)} sample(s), results on seen data mean nothing: {first}"
            )


def _prints(source: SourceConfig, setting: str) -> Iterator[tuple[Path, Prints]]:
    """The prints of a source's shards, of the kinds that it keeps."""
    for path in find_shards(source.path, f"{setting} {source.name!r}: path"):
        prints = prints_of_shard(path)
        if source.kinds is not None:
            entries = open_shard(path).entries
            kept = np.array([entry.kind in source.kinds for entry in entries], bool)[prints.sample]
            prints = Prints(prints.hashes[kept], prints.what[kept], prints.sample[kept])
        yield path, prints


def _announce(sources: Iterable[SourceConfig]) -> None:
    shards = {path for source in sources for path in find_shards(source.path) if not are_kept(path)}
    size = sum(path.stat().st_size for path in shards)
    if size >= _SLOW:
        log.warning(
            "check_leaks: reads %d shards of %.1f GiB to see whether anything is both trained and evaluated on; their "
            "prints are kept, so that this happens once",
            len(shards),
            size / 2**30,
        )
