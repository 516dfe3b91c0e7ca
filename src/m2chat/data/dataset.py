"""A data source of a run: its configuration, and its opened shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import register_type
from numpy.typing import NDArray

from m2chat.data.feature_file import FeaturePart
from m2chat.data.images import load_whole
from m2chat.data.index import open_shards
from m2chat.data.remote import CACHE
from m2chat.data.shards import find_shards
from m2chat.data.sources import Loader, sample_of
from m2chat.errors import UserError
from m2chat.ranges import check_number
from m2chat.schema import KINDS, Sample
from m2chat.world import generate_shards


@dataclass
class SourceConfig:
    """A data set to read.

    Args:
        name: Name in logs and results.
        path: ``.tar`` shard, folder of them, or pattern; local, or ``http(s)://``, ``s3://`` and the like.
        weight: Share of training, relative to the other sources; 0 leaves it out.
        kinds: Kinds of sample to keep (``caption``, ``instruct``, ``dialogue``, ``edit``, ``story``); all by default.
        allow_pipe: Whether a path ``pipe:COMMAND`` may run its command.
        world: Name of the generated world that the data come from, a folder under ``m2chat/worlds/``. Its path is
            ``ROOT/<data set>/<split>`` then, and all its data sets are generated below ROOT if they are not there.
        describe: Whether each reply with a picture is turned round: the picture is shown, and its caption is the
            reply. Stage 0 trains on that; replies without a picture stay as they are.
        stream: Way in which training reads the shards. ``random``: one sample at a time, after an index of every shard
            was made. ``sequential``: whole shards in a seeded order, without an index; needs ``samples_per_epoch``.
            ``auto``: ``sequential`` for remote shards and pipes where nothing needs an index, else ``random``.
        shuffle_buffer: Number of samples that are shuffled together where the shards are read in sequence; each reading
            process holds up to twice as many files in memory.

    Raises:
        UserError: If a number is out of its range.
    """

    name: str
    path: str
    weight: float = 1.0
    kinds: list[str] | None = None
    allow_pipe: bool = False
    world: str | None = None
    describe: bool = False
    stream: Literal["auto", "random", "sequential"] = "auto"
    shuffle_buffer: int = 2000

    def __post_init__(self) -> None:
        check_number(f"source {self.name!r}: weight", self.weight, "source_weight")
        check_number(f"source {self.name!r}: shuffle_buffer", self.shuffle_buffer, "shuffle_buffer")

    def generate(self) -> None:
        """Generates the shards of a generated world; does nothing for other data.

        Raises:
            UserError: If there is no such world, or the path is too short to name its root.
        """
        if self.world is None:
            return
        root = Path(self.path).parent.parent
        if root == Path("."):
            raise UserError(
                f"source {self.name!r}: path={self.path!r} of the generated world {self.world!r} must read "
                "ROOT/<data set>/<split>, such as data/micro/shards/cc3m/train"
            )
        generate_shards(self.world, root, f"source {self.name!r}: world")


def _source_config(settings: Any) -> SourceConfig:
    """A source from its settings.

    Raises:
        ValueError: If a setting is unknown, missing or of another type.
    """
    names = [field.name for field in fields(SourceConfig)]
    if not isinstance(settings, dict):
        raise ValueError(f"Expected a table of settings ({', '.join(names)}). Got value: {settings}")
    for name in settings.keys() - set(names):
        close = get_close_matches(str(name), names, n=1)
        raise ValueError(f"Option {name!r} is not accepted" + (f". Did you mean {close[0]!r}?" if close else ""))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SourceConfig)
    try:
        parsed = parser.parse_object(settings).as_dict()
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    for name in ("name", "path"):
        if parsed[name] is None:
            raise ValueError(f"Parser key \"{name}\": Expected a <class 'str'>. Got value: null")
    return SourceConfig(**parsed)


# Without this, jsonargparse merges a list from the command line, entry by entry, into a list of the same length from a
# configuration file: another data set would be read with the weight, the kinds and the world of the one it replaces.
register_type(SourceConfig, asdict, _source_config)


def check_kinds(kinds: list[str] | None, setting: str) -> None:
    """Checks the kinds of sample to keep.

    Args:
        kinds: Names of kinds; None for all.
        setting: Name of the source, for the error.

    Raises:
        UserError: If there is no such kind.
    """
    if unknown := set(kinds or ()) - set(KINDS):
        raise UserError(f"{setting}: kinds={sorted(unknown)}: choose from {', '.join(KINDS)}")


class Source:
    """The good samples of an opened data set. The bad ones are counted, and have no place in any order.

    Args:
        config: Configuration.
        setting: Name of the setting, for errors.
        cache: Folder for indices that cannot stand beside their shards.
        threads: Number of shards that are indexed at once.

    Raises:
        UserError: If there are no shards or no good sample is left, or a kind does not exist.
    """

    def __init__(self, config: SourceConfig, setting: str = "source", cache: str = CACHE, threads: int = 1) -> None:
        check_kinds(config.kinds, f"{setting} {config.name!r}")
        self.config, self.name = config, config.name
        named = f"{setting} {config.name!r}: path"
        places = find_shards(config.path, named, allow_pipe=config.allow_pipe, cache=cache)
        self.shards = open_shards(places, cache, threads)
        self.files_left_out: Counter[str] = sum((Counter(shard.skipped) for shard in self.shards), Counter())
        """Number of files that belong to no sample, by reason."""
        self.features: FeaturePart | None = None
        """Kept features of the samples; training reads them in place of the shards' contents."""
        self.load: Loader = load_whole
        """Decoder of the pictures."""
        self.samples, self.faults = 0, Counter[str]()
        """Number of all samples, and of the bad ones by reason."""
        self.kept: list[NDArray[np.int32]] = []
        """For each shard, the places of the good samples of the kinds to keep."""
        wanted = set(config.kinds or KINDS)
        for shard in self.shards:
            kept = []
            for place, entry in enumerate(shard.entries):
                if entry.fault:
                    self.faults[entry.fault] += 1
                elif entry.kind in wanted:
                    kept.append(place)
            self.samples += len(shard.entries)
            self.kept.append(np.array(kept, dtype=np.int32))
        self._starts = np.cumsum([0, *map(len, self.kept)])
        if not len(self):
            kinds = f" of the kinds {config.kinds}" if config.kinds else ""
            bad = ", ".join(f"{count} x {why}" for why, count in (self.faults + self.files_left_out).most_common())
            raise UserError(
                f"{setting} {config.name!r}: path={config.path!r} holds no sample{kinds}"
                f"{f' (left out: {bad})' if bad else ''}: see `m2chat data`"
            )

    def __len__(self) -> int:
        return sum(map(len, self.kept))

    def read(self, shard: int, index: int) -> Sample:
        """One sample, by the number of its shard and its index among the kept ones.

        Raises:
            BadSample: If it has become bad since it was indexed.
            OSError: If it cannot be read.
        """
        place = int(self.kept[shard][index])
        opened = self.shards[shard]
        return sample_of(opened.members(place), opened.entries[place].key, self.name, self.load)

    def number(self, shard: int, index: int) -> int:
        """Number of a sample among all kept ones, by the number of its shard and its index there."""
        return int(self._starts[shard]) + index

    def place(self, number: int) -> tuple[int, int]:
        """The inverse of `number`."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def lengths(self, shard: int, index: int) -> dict[int, int]:
        """Turn and length, in bytes of text, of each reply of a sample; from the index alone."""
        entry = self.shards[shard].entries[int(self.kept[shard][index])]
        return dict(zip(entry.replies, entry.lengths, strict=True))

    def replies(self) -> Iterator[tuple[int, int, int]]:
        """Every reply of every sample in order: shard, index among the kept ones, turn."""
        for number, shard in enumerate(self.shards):
            for index, place in enumerate(self.kept[number]):
                for turn in shard.entries[int(place)].replies:
                    yield number, index, turn

    @property
    def manifest(self) -> str:
        """All that the order depends on: names and sizes of the shards."""
        shards = [f"{PurePosixPath(s.path).name}:{len(kept)}" for s, kept in zip(self.shards, self.kept, strict=True)]
        return f"{self.name}*{self.config.weight}[{','.join(shards)}]"
