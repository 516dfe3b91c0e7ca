"""The stream of conversations that training reads.

Which sample stands at which position depends on the seed, the epoch and the lanes alone, not on ranks or workers, so a
run can stop anywhere and go on with another number of them.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from m2chat.data.dataset import Source
from m2chat.data.items import Item, ItemStream, described
from m2chat.data.order import Buckets, Lanes, Mixture, Shuffle, batches_of, positions_used
from m2chat.data.sequential import LaneReader, SequentialSource
from m2chat.data.sources import BadSample
from m2chat.errors import UserError
from m2chat.schema import Sample
from m2chat.text.view import replies_of, segments_of

_TRIES = 100


class ShardStream(ItemStream):
    """Training: a weighted mixture without end, cut into epochs.

    An epoch goes on where the one before it ended, so that a source is seen once in full before any of it is seen
    again. Up to ``ranks - 1`` positions at the end of an epoch, too few to give each rank one, are left to the next.

    Bad samples have no place in the order. If a sample has become unreadable since it was indexed, the next good one
    of its source is repeated in its place: to skip it, all other ranks would have to learn of it.

    Where a source is read in sequence, the positions are dealt to lanes, a batch at a time: as many as there are
    reading processes when the run begins, or shards if these are fewer. So every process reads shards of its own. The
    lanes of a run stay as they are; with other processes later, some shards are read by several of them.

    Args:
        sources: Data sources; those of weight 0 are left out.
        batch_size: Items per batch of one rank.
        seed: Seed of the order, and of the choice of the reply that is learned.
        samples_per_epoch: Positions of an epoch, over all ranks; all samples of the sources by default.
        rank: Number of this rank.
        ranks: Number of ranks.
        bucket_window: Batches among which sequences of like length are brought together; 0 leaves the order as it is.
        workers: Number of reading processes of each rank; 0 counts as one.

    Raises:
        UserError: If no source has a weight above 0, an epoch has not one sample for each rank, or an index is needed
            of a source that is read in sequence.
    """

    even = True

    def __init__(
        self,
        sources: Sequence[Source | SequentialSource],
        batch_size: int,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        bucket_window: int = 0,
        workers: int = 0,
    ) -> None:
        used = [source for source in sources if source.config.weight > 0]
        if not used:
            weights = {source.name: source.config.weight for source in sources}
            raise UserError(f"train: no source has a weight above 0 ({weights}): give one at least")
        indexed = [source for source in used if isinstance(source, Source)]
        in_sequence = [source for source in used if isinstance(source, SequentialSource)]
        size = samples_per_epoch or sum(map(len, indexed))
        for source in in_sequence:
            if why := needs_an_index(samples_per_epoch, bucket_window):
                raise UserError(f"source {source.name!r} has stream: sequential, and {why}, or give it stream: random")
        if size < ranks:
            raise UserError(f"samples_per_epoch={size} is less than one sample for each of {ranks} ranks: raise it")
        super().__init__(batch_size, size, rank, ranks)
        self.sources = used
        self.seed, self.bucket_window = seed, bucket_window
        self.epoch, self.batches_before, self.before = 0, 0, 0
        readers = min([ranks * max(1, workers), *(len(source.places) for source in in_sequence)])
        self.lanes = Lanes(readers, batch_size) if in_sequence else Lanes()
        self._readers: dict[tuple[int, int], LaneReader] = {}
        self._mixture = Mixture([source.config.weight for source in used])
        self._orders = [
            Shuffle([len(kept) for kept in source.kept], seed, source.name) if isinstance(source, Source) else None
            for source in used
        ]
        order = "\n".join(source.manifest for source in used) + (f"\nbuckets:{bucket_window}" if bucket_window else "")
        self.manifest = hashlib.sha256(order.encode()).hexdigest()[:16]
        self.start_at(0)

    def start_at(
        self,
        epoch: int,
        samples_seen: int = 0,
        batches_seen: int = 0,
        before: int | None = None,
        group: int | None = None,
        lanes: Sequence[int] | None = None,
    ) -> None:
        """Goes to a place.

        Args:
            epoch: Number of the epoch, from 0.
            samples_seen: Positions of the epoch that all ranks together have used.
            batches_seen: Batches in which they did; they count in the length, as Lightning expects.
            before: Positions used before the epoch; by default as many as this number of ranks uses.
            group: Samples of a batch of all ranks with which the epoch was begun; by default as now.
            lanes: The two numbers of the lanes with which the run was begun; by default as now.
        """
        if before is None:
            steps = epoch - self.epoch
            whole = positions_used(0, self.size, self.batch_size, self.ranks)
            before = self.before if not steps else self._end() + (steps - 1) * whole if steps > 0 else epoch * whole
        self.epoch, self.before = epoch, before
        self.start, self.batches_before = samples_seen, batches_seen
        self.group = group or self.batch_size * self.ranks
        if lanes and self.lanes != Lanes():
            self.lanes = Lanes(*lanes)
        self._buckets = None
        if self.bucket_window:
            self._buckets = Buckets(self.size, self.bucket_window, self.group, self._length, f"{self.seed}/{epoch}")

    def readings(self, workers: int) -> float:
        """How many processes read each shard that is read in sequence: 1 where lanes and processes fit each other.

        Args:
            workers: Number of reading processes of each rank.
        """
        step, read = self.batch_size * self.ranks, set[tuple[int, int, int]]()
        for batch in range(2 * self.lanes.count * max(1, workers)):
            for rank in range(self.ranks):
                first = self.before + batch * step + rank * self.batch_size
                last = first + self.batch_size - 1
                draws = [*range(first, last, self.lanes.block), last]
                read |= {(self.lanes(draw)[0], rank, batch % max(1, workers)) for draw in draws}
        return len(read) / len({lane for lane, _, _ in read})

    def _end(self) -> int:
        """Positions used up to the end of this epoch."""
        return self.before + positions_used(self.start, self.size, self.batch_size, self.ranks)

    def __len__(self) -> int:
        """Batches of the epoch, those before the place where it was resumed included."""
        return self.batches_before + super().__len__()

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch that is not resumed."""
        return len(batches_of(0, self.size, self.batch_size, self.rank, self.ranks, even=True))

    def state(self, batches_seen: int) -> dict[str, Any]:
        """The place after some batches of this epoch, the same on every rank.

        Args:
            batches_seen: Batches of the epoch that this rank has used.
        """
        samples = self.start + (batches_seen - self.batches_before) * self.batch_size * self.ranks
        place: dict[str, Any] = {
            "epoch": self.epoch,
            "samples_seen": min(samples, self.size),
            "batches_seen": batches_seen,
        }
        place |= {"before": self.before, "group": self.group}
        if batches_seen >= len(self):
            group = self.batch_size * self.ranks
            place = {"epoch": self.epoch + 1, "samples_seen": 0, "batches_seen": 0}
            place |= {"before": self._end(), "group": group}
        if self.lanes != Lanes():
            place["lanes"] = [self.lanes.count, self.lanes.block]
        return {**place, "seed": self.seed, "manifest": self.manifest}

    def position(self, place: int) -> int:
        """The position at a place of the order in which they are used."""
        return place if self._buckets is None else self._buckets(place)

    def __iter__(self) -> Iterator[list[Item]]:
        self._readers = {}  # each iteration, in each worker, reads on its own
        try:
            yield from super().__iter__()
        finally:
            self._readers = {}

    def item(self, position: int, missed: list[tuple[str, str]]) -> Item:
        """The reply at a position of the epoch."""
        which, lane, draw = self._draw(position)
        source = self.sources[which]
        found = (
            self._by_place(source, which, lane, draw, missed)
            if isinstance(source, Source)
            else self._in_sequence(source, which, lane, draw, missed)
        )
        if found is None:
            reasons = ", ".join(f"{count} x {why}" for (_, why), count in Counter(missed).most_common())
            raise UserError(
                f"source {source.name!r}: {_TRIES} unreadable samples in a row ({reasons}): check {source.config.path}"
            )
        sample, replies, place = found
        item = self._choose(sample, replies, position)._replace(place=place)
        return described(item) if source.config.describe else item

    def _by_place(
        self, source: Source, which: int, lane: int, draw: int, missed: list[tuple[str, str]]
    ) -> tuple[Sample, list[int], tuple[int, int, int]] | None:
        """Sample, its replies and its place, of an indexed source; None if too many are unreadable."""
        for offset in range(_TRIES):
            shard, index = self._place(which, lane, draw, offset)
            sample = self._read(source, shard, index, missed)
            if sample is not None:
                return sample, [*source.lengths(shard, index)], (which, shard, index)
        return None

    def _in_sequence(
        self, source: SequentialSource, which: int, lane: int, draw: int, missed: list[tuple[str, str]]
    ) -> tuple[Sample, list[int], tuple[int, int, int]] | None:
        """Sample, its replies and its place, of a source that is read shard by shard."""
        if (which, lane) not in self._readers:
            self._readers[which, lane] = source.lane(lane, self.lanes.count, self.seed)
        reader = self._readers[which, lane]
        for offset in range(min(_TRIES, source.config.shuffle_buffer)):
            files = reader(draw, offset)
            if not offset:  # what is tried in its place is counted in its own
                missed.extend((source.name, reason) for reason in files.faults)
            try:
                sample = source.read(files)
            except BadSample as error:
                if not offset:
                    missed.append((source.name, error.reason))
            else:
                return sample, replies_of(sample), (which, lane, draw)
        return None

    def _read(self, source: Source, shard: int, index: int, missed: list[tuple[str, str]]) -> Sample | None:
        """A sample; without words and pictures if its features are kept."""
        if source.features is not None and source.features.form.whole:
            return source.features.sample(source.number(shard, index), source.name)
        return super()._read(source, shard, index, missed)

    def _draw(self, position: int) -> tuple[int, int, int]:
        """Number of the source of a position, its lane, and how often the lane has drawn from the source before."""
        lane, before = self.lanes(self.before + position)
        which, draw = self._mixture(before)
        return which, lane, draw

    def _place(self, which: int, lane: int, draw: int, offset: int = 0) -> tuple[int, int]:
        """Shard and index of a draw from an indexed source, or of one of the draws that follow it."""
        order = self._orders[which]
        assert order is not None
        # Lanes take turns at a source that all of them read at random.
        return order((draw + offset) * self.lanes.count + lane)

    def _rng(self, position: int) -> random.Random:
        return random.Random(f"{self.seed}/{self.epoch}/{position}")

    def _choose(self, sample: Sample, replies: list[int], position: int) -> Item:
        """One reply of a conversation and one of its pictures, drawn at random."""
        lot = f"{self.seed}/{self.epoch}/{position}/look"
        if len(replies) == 1 and len(sample.turns[replies[0]].parts) == 1:  # a caption pair: nothing to draw
            _, (picture,) = segments_of(sample.turns[replies[0]], sample)
            return Item(sample, replies[0], None if picture is None else 0, position, lot)
        rng = self._rng(position)
        turn = rng.choice(replies)
        _, pictures = segments_of(sample.turns[turn], sample)
        drawn = [segment for segment, picture in enumerate(pictures) if picture is not None]
        return Item(sample, turn, rng.choice(drawn) if drawn else None, position, lot)

    def _length(self, position: int) -> int:
        """Length of the sequence at a position, in bytes of text: the random draw of `_choose`, without reading."""
        which, lane, draw = self._draw(position)
        source = self.sources[which]
        assert isinstance(source, Source)
        lengths = source.lengths(*self._place(which, lane, draw))
        return lengths[self._rng(position).choice([*lengths])]


def needs_an_index(samples_per_epoch: int | None, bucket_window: int) -> str:
    """The setting for which shards must be indexed before they are read, and its remedy; empty if none."""
    if samples_per_epoch is None:
        return (
            "the number of its samples is not known before all are read: set data.samples_per_epoch, to that number if "
            "an epoch is to be all of them"
        )
    return "data.length_bucketing sorts by lengths that only an index has: set it to 0" if bucket_window else ""
