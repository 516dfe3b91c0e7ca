"""Leaks: samples to validate or test on that also occur in the training data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m2chat.data.dataset import Source
from m2chat.data.index import Shard
from m2chat.data.prints import WHAT, Prints, are_kept, identity, prints_of_shard
from m2chat.data.sources import json_of
from m2chat.errors import UserError

log = logging.getLogger(__name__)

_SLOW = 2**30
"""Bytes to read from which on a log message explains the wait."""


class _Place(NamedTuple):
    """The place of a sample: source, number of the shard in it, and index in `Shard.entries`."""

    source: Source
    shard: int
    sample: int

    def __str__(self) -> str:
        shard = self.source.shards[self.shard]
        key = shard.entries[self.sample].key
        return f"{identity(json_of(shard.members(self.sample)), key)!r} (key {key} of {shard.path})"


def refuse_leaks(
    train: Sequence[Source], held_out: Mapping[str, Sequence[Source]], compares_pictures: bool = True
) -> None:
    """Raises if a sample to validate or to test on also occurs in training.

    Args:
        train: Sources to train on; those of weight 0 are left out.
        held_out: Sources to evaluate on, by the name of their setting.
        compares_pictures: Whether a sample is also recognised by its pictures.

    Raises:
        UserError: If there is a leak; with the first one, the number of all, and the remedy.
    """
    used = [source for source in train if source.config.weight > 0]
    if not used or not any(held_out.values()):
        return
    _announce([*used, *(source for sources in held_out.values() for source in sources)])
    for setting, sources in held_out.items():
        owners: dict[int, _Place] = {}
        for source in sources:
            for number, prints in _prints(source, compares_pictures):
                for hashed, sample in zip(prints.hashes.tolist(), prints.sample.tolist(), strict=True):
                    owners.setdefault(hashed, _Place(source, number, sample))
        known = np.array(list(owners), np.uint64)
        leaked: set[_Place] = set()
        first = ""
        for source in used:
            for number, prints in _prints(source, compares_pictures):
                for at in np.flatnonzero(np.isin(prints.hashes, known)).tolist():
                    place = owners[int(prints.hashes[at])]
                    leaked.add(place)
                    first = first or (
                        f"{setting} sample {place} has the {WHAT[prints.what[at]]} of train sample "
                        f"{_Place(source, number, int(prints.sample[at]))}. To train without it: `m2chat data subset "
                        f"{source.config.path} CLEAN --without {place.source.config.path}`, and give CLEAN as the path "
                        f"of source {source.name!r}; if it is meant, set data.check_leaks to false, or to words if "
                        "only pictures are shared"
                    )
        if leaked:
            raise UserError(
                f"train and {setting} share {len(leaked)} sample(s), results on seen data mean nothing: {first}"
            )


def prints_of_sources(sources: Iterable[Source], compares_pictures: bool = True) -> frozenset[int]:
    """All prints of the samples that some sources keep; `compares_pictures` as for `refuse_leaks`."""
    every = (prints for source in sources for _, prints in _prints(source, compares_pictures))
    return frozenset(hashed for prints in every for hashed in prints.hashes.tolist())


def _prints(source: Source, compares_pictures: bool) -> Iterator[tuple[int, Prints]]:
    """Number and prints of each shard of a source, of the samples that it keeps."""
    for number, shard in enumerate(source.shards):
        prints = prints_of_shard(shard)
        kept = np.isin(prints.sample, source.kept[number])
        if not compares_pictures:
            kept &= prints.what != WHAT.index("picture")
        yield number, Prints(prints.hashes[kept], prints.what[kept], prints.sample[kept])


def _announce(sources: Sequence[Source]) -> None:
    shards = [shard for source in sources for shard in source.shards if not are_kept(shard)]
    if (size := sum(map(_size, shards))) >= _SLOW:
        log.warning(
            "check_leaks: reads %d shards of %.1f GiB once, to compare training with evaluation; the prints are kept",
            len(shards),
            size / 2**30,
        )


def _size(shard: Shard) -> int:
    return sum(size for entry in shard.entries for _, _, size in entry.members)
