"""Whole shards, read from start to end: for buckets with thousands of them, and for the output of commands.

Nothing is indexed before the training. A source is dealt to lanes (`m2chat.data.order.Lanes`), each of which reads
whole shards in a seeded order and shuffles the samples of windows of neighbours. Which sample stands at which place of
a lane depends on the seed and the shards alone. A place is found again by skipping shards whose number of samples is
known, because a process has read them to their end before, and by reading the rest of the way.

Every sample of a shard has a place, bad ones too: they are only recognised when they are decoded, and then the next
good one of the window is repeated in their place.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath

from m2chat.data.dataset import SourceConfig, check_kinds
from m2chat.data.images import load_whole
from m2chat.data.order import ShardOrder
from m2chat.data.prints import prints_of
from m2chat.data.remote import CACHE
from m2chat.data.shard_file import open_shard_file
from m2chat.data.shards import find_shards
from m2chat.data.sources import BadSample, Loader, outline, sample_of
from m2chat.data.tar_samples import TarSample, tar_samples
from m2chat.errors import UserError
from m2chat.files import write_whole
from m2chat.schema import Sample

log = logging.getLogger(__name__)

LEAKED = "also in the data to validate or test on"
"""Reason for which a sample is left out that evaluation has, too."""


class SequentialSource:
    """A data set that training reads shard by shard.

    Args:
        config: Configuration.
        setting: Name of the setting, for errors.
        cache: Folder in which the numbers of samples of shards are kept.

    Raises:
        UserError: If there are no shards, a kind does not exist, or a pipe may not run.
    """

    features = None

    def __init__(self, config: SourceConfig, setting: str = "source", cache: str | Path = CACHE) -> None:
        self.config, self.name = config, config.name
        self._setting = f"{setting} {config.name!r}"
        check_kinds(config.kinds, self._setting)
        self.places = find_shards(
            config.path, f"{self._setting}: path", allow_pipe=config.allow_pipe, cache=cache, run_pipes=False
        )
        self._counts = _Counts(Path(cache).expanduser() / "counts", config.kinds)
        self.load: Loader = load_whole
        """Decoder of the pictures."""
        self.held_out: Collection[int] = frozenset()
        """Prints of samples to evaluate on (`m2chat.data.prints`): samples that have one are left out."""

    @property
    def manifest(self) -> str:
        """All that the order depends on: names of the shards, and the size of the window."""
        names = ",".join(PurePosixPath(str(place)).name for place in self.places)
        return f"{self.name}*{self.config.weight}[{names}]~{self.config.shuffle_buffer}"

    def read(self, files: TarSample) -> Sample:
        """A sample from its files.

        Raises:
            BadSample: If it is broken, or evaluation has it too.
        """
        if self.held_out and any(hashed in self.held_out for hashed, _ in prints_of(files.members, files.key)):
            raise BadSample(LEAKED)
        return sample_of(files.members, files.key, self.name, self.load)

    def lane(self, lane: int, lanes: int, seed: int) -> LaneReader:
        """The reader of a lane.

        Args:
            lane: Number of the lane.
            lanes: Number of lanes.
            seed: Seed of the run.
        """
        order = ShardOrder(len(self.places), lanes, seed, self.name)
        return LaneReader(self, order, lane)

    def count(self, shard: int) -> int | None:
        """Number of samples of a shard, if a process has read it to its end."""
        return self._counts.get(str(self.places[shard]))

    def samples(self, shard: int, faults: list[str]) -> Iterator[TarSample]:
        """The samples of a shard, of the kinds to keep; their number is kept behind the last.

        Args:
            shard: Number of the shard.
            faults: List to which the reason of each left-out file is added; each sample takes those before it.

        Raises:
            UserError: If the shard cannot be reached.
        """
        place, count = self.places[shard], 0
        with closing(open_shard_file(place, f"{self._setting}: path")) as file:
            for files in tar_samples(str(place), file, faults):
                if self._is_kept(files):
                    count += 1
                    yield TarSample(files.key, files.members, tuple(faults))
                    faults.clear()
            file.finish()
        self._counts.keep(str(place), count)

    def _is_kept(self, files: TarSample) -> bool:
        if self.config.kinds is None:
            return True
        with suppress(BadSample):
            return outline(files.members)[0] in self.config.kinds
        return True  # it is counted as bad where it is read

    def nothing(self) -> UserError:
        """The error of a source without samples."""
        kinds = f" of the kinds {self.config.kinds}" if self.config.kinds else ""
        return UserError(
            f"{self._setting}: path={self.config.path!r} holds no sample{kinds} in any of {len(self.places)} shards: "
            "see `m2chat data`"
        )


class LaneReader:
    """The samples of a lane, in windows that are shuffled; it moves forward, and holds two windows of files at most.

    A window ends with a round of the shards at the latest, so that all of a round comes before any of the next.

    Args:
        source: The source.
        order: Order of the shards.
        lane: Number of the lane.
    """

    def __init__(self, source: SequentialSource, order: ShardOrder, lane: int) -> None:
        self._source, self._order, self._lane = source, order, lane
        self._size = source.config.shuffle_buffer
        self._first, self._rows = 0, list[TarSample]()
        """Draw at which the window begins, and its samples."""
        self._ahead, self._is_whole = list[TarSample](), False
        """Samples of the next window so far, and whether a round ends with them."""
        self._stream: Iterator[TarSample | None] | None = None

    def __call__(self, draw: int, offset: int = 0) -> TarSample:
        """The sample of a draw, or another one of its window.

        Args:
            draw: Draws of the lane before this one.
            offset: Number of samples of the window to go on by.

        Raises:
            UserError: If a shard cannot be reached, or there is no sample.
        """
        if self._stream is None or draw < self._first:
            self._seek(draw)
        while draw >= self._first + len(self._rows):
            self._advance()
        place = draw - self._first
        # The next window is read while this one is used, so that no batch waits for a whole one.
        self._read_ahead(place + 1)
        return self._rows[int(self._permutation[(place + offset) % len(self._rows)])]

    def _advance(self) -> None:
        """Goes to the next window."""
        self._read_ahead(self._size)
        self._first += len(self._rows)
        self._rows, self._ahead, self._is_whole = self._ahead, [], False
        self._permutation = self._order.window(self._lane, self._first, len(self._rows))

    def _read_ahead(self, count: int) -> None:
        """Reads the next window, up to some number of samples."""
        assert self._stream is not None
        while len(self._ahead) < min(count, self._size) and not self._is_whole:
            files = next(self._stream)
            if files is not None:
                self._ahead.append(files)
            elif self._ahead:
                self._is_whole = True

    def _seek(self, draw: int) -> None:
        """Goes before the window of a draw, or before an earlier one: as far as the numbers of samples are known."""
        turn = before = first = 0
        begins: list[tuple[int, int]] = []
        """For each shard of the round, the number of shards before it, and the draw at which it begins."""
        while True:
            if turn and self._order.ends_round(self._lane, turn - 1):
                first, begins = before, []
            begins.append((turn, before))
            known = self._source.count(self._order(self._lane, turn))
            if known is None or before + known > draw:
                break
            before, turn = before + known, turn + 1
            if not before and turn > 2 * self._order.shards:
                raise self._source.nothing()
        first += ((before if known is None else draw) - first) // self._size * self._size
        turn, begin = next(place for place in reversed(begins) if place[1] <= first)
        self._first, self._rows, self._ahead, self._is_whole = first, [], [], False
        self._stream = self._samples(turn, first - begin)

    def _samples(self, turn: int, skipped: int) -> Iterator[TarSample | None]:
        """The samples of shard after shard, without end; None behind the last of a round.

        Args:
            turn: Number of shards to leave out.
            skipped: Number of samples to leave out of the first one that is read.
        """
        faults = list[str]()
        empty = 0
        while True:
            empty += 1
            for number, files in enumerate(self._source.samples(self._order(self._lane, turn), faults)):
                empty = 0
                if number >= skipped:
                    yield files
            skipped = 0
            if self._order.ends_round(self._lane, turn):
                yield None
            if empty > 2 * self._order.shards:
                raise self._source.nothing()
            turn += 1


class _Counts:
    """Numbers of samples of shards that a process has read to their end, for all processes and later runs.

    Args:
        folder: Folder of the files, one a shard.
        kinds: Kinds of sample that are counted; None for all.
    """

    def __init__(self, folder: Path, kinds: list[str] | None) -> None:
        self._folder, self._kinds = folder, sorted(kinds) if kinds else None
        self._known: dict[str, int] = {}

    def get(self, address: str) -> int | None:
        """The number of a shard, if it is known."""
        if address not in self._known:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(self._file(address).read_text(encoding="utf-8"))
                if content["address"] == address:
                    self._known[address] = int(content["samples"])
        return self._known.get(address)

    def keep(self, address: str, samples: int) -> None:
        """Notes the number of a shard."""
        before = self.get(address)
        if before == samples:
            return
        if before is not None:
            log.warning("%s has %d samples, and had %d before: the order is another one", address, samples, before)
        self._known[address] = samples
        with suppress(OSError):  # where nothing can be written, a resumed run reads the shards again
            self._folder.mkdir(parents=True, exist_ok=True)
            content = {"address": address, "kinds": self._kinds, "samples": samples}
            write_whole(self._file(address), [json.dumps(content)])

    def _file(self, address: str) -> Path:
        name = f"{address}\n{self._kinds or ''}"
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"
