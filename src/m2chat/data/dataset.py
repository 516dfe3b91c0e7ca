"""A data set: some shards, opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2chat.data.shards import UNKNOWN, Shard, find_shards, open_shard
from m2chat.data.sources import sample_of
from m2chat.errors import UserError
from m2chat.schema import KINDS, Sample


@dataclass
class SourceConfig:
    """A data set to read.

    Args:
        name: What it is called in logs and results.
        path: A ``.tar`` shard, a folder of them, or a pattern.
        weight: Its share of training, relative to the other sources; 0 leaves it out.
        kinds: Kinds of sample to keep (``caption``, ``instruct``, ``dialogue``, ``edit``, ``story``); all by default.
    """

    name: str
    path: str
    weight: float = 1.0
    kinds: list[str] | None = None


class Source:
    """An opened data set.

    Args:
        config: What to read.
        setting: Name of the setting, for errors.

    Raises:
        UserError: If there are no shards or no sample is left, or a kind does not exist.
    """

    def __init__(self, config: SourceConfig, setting: str = "source") -> None:
        if unknown := set(config.kinds or ()) - set(KINDS):
            raise UserError(f"{setting} {config.name!r}: kinds={sorted(unknown)}: choose from {', '.join(KINDS)}")
        self.config, self.name = config, config.name
        self.shards: list[Shard] = [
            open_shard(path) for path in find_shards(config.path, f"{setting} {config.name!r}: path")
        ]
        wanted = {*(config.kinds or KINDS), UNKNOWN}  # What cannot be told is kept, and counted when it is read.
        self.kept = [[i for i, entry in enumerate(shard.entries) if entry.kind in wanted] for shard in self.shards]
        if not len(self):
            kinds = f" of the kinds {config.kinds}" if config.kinds else ""
            raise UserError(
                f"{setting} {config.name!r}: path={config.path!r} holds no sample{kinds}: see `m2chat data`"
            )

    def __len__(self) -> int:
        return sum(map(len, self.kept))

    def read(self, shard: int, index: int) -> Sample:
        """One sample, by its shard and its place among the kept ones.

        Raises:
            BadSample: If it is broken.
        """
        place = self.kept[shard][index]
        opened = self.shards[shard]
        return sample_of(opened.members(place), opened.entries[place].key, self.name)

    def replies(self) -> Iterator[tuple[int, int, int]]:
        """Every reply of every sample in order: shard, index among the kept ones, turn."""
        for number, shard in enumerate(self.shards):
            for index, place in enumerate(self.kept[number]):
                for turn in shard.entries[place].replies:
                    yield number, index, turn

    @property
    def manifest(self) -> str:
        """What the order depends on: names and sizes of the shards."""
        shards = [f"{Path(s.path).name}:{len(kept)}" for s, kept in zip(self.shards, self.kept, strict=True)]
        return f"{self.name}*{self.config.weight}[{','.join(shards)}]"
