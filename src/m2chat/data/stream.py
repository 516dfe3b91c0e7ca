"""The stream of conversations that training and evaluation read.

Which sample stands at which position depends on the seed and the epoch alone, not on ranks or workers, so a run can
stop anywhere and go on with another number of them.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from m2chat.data.dataset import Source
from m2chat.data.order import Buckets, Mixture, Shuffle, batches_of, positions_used
from m2chat.data.sources import BadSample
from m2chat.errors import UserError
from m2chat.schema import Sample
from m2chat.text.describing import as_description
from m2chat.text.view import segments_of

log = logging.getLogger(__name__)

_TRIES = 100


class Item(NamedTuple):
    """A reply to learn from or to evaluate.

    Args:
        sample: Conversation.
        turn: Index of the reply in its turns.
        target: Segment of the reply whose picture is drawn; None means the first that has one.
        position: Position in the epoch, the same for any number of ranks and workers.
        lot: Seed of any further random draw about it, such as its augmentation; empty for none.
        missed: Source and reason of each sample that could not be read in its place.
        place: Number of the source, number of the shard, and index among the shard's kept samples.
    """

    sample: Sample
    turn: int
    target: int | None = None
    position: int = 0
    lot: str = ""
    missed: tuple[tuple[str, str], ...] = ()
    place: tuple[int, int, int] = (0, 0, 0)


class _Stream(IterableDataset[list[Item]]):
    """Batches of one rank: the parts that training and evaluation share.

    Args:
        sources: Data sources.
        batch_size: Items per batch of one rank.
        size: Positions of an epoch.
        rank: Number of this rank.
        ranks: Number of ranks.
    """

    even = False

    def __init__(self, sources: Sequence[Source], batch_size: int, size: int, rank: int, ranks: int) -> None:
        super().__init__()
        self.sources, self.batch_size, self.size = list(sources), batch_size, size
        self.rank, self.ranks = rank, ranks
        self.start = 0

    def _batches(self) -> list[range]:
        return batches_of(self.start, self.size, self.batch_size, self.rank, self.ranks, even=self.even)

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[Item]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # Each worker makes whole batches: the loader takes them from the workers in turn, which restores their order.
        for places in self._batches()[first::step]:
            missed: list[tuple[str, str]] = []
            items = [item for place in places if (item := self.item(self.position(place), missed)) is not None]
            if items:
                yield [items[0]._replace(missed=tuple(missed)), *items[1:]]

    def position(self, place: int) -> int:
        """The position at a place of the order in which they are used."""
        return place

    def item(self, position: int, missed: list[tuple[str, str]]) -> Item | None:
        """The item at a position, None if it cannot be read and nothing may replace it.

        Args:
            position: Position in the epoch.
            missed: List to which source and reason of each unreadable sample are added.
        """
        raise NotImplementedError

    def _read(self, source: Source, shard: int, index: int, missed: list[tuple[str, str]]) -> Sample | None:
        """A sample, or None if it was good when it was indexed and cannot be read any more."""
        try:
            return source.read(shard, index)
        except (BadSample, OSError) as error:
            reason = error.reason if isinstance(error, BadSample) else f"unreadable file ({type(error).__name__})"
        missed.append((source.name, reason))
        return None


class ShardStream(_Stream):
    """Training: a weighted mixture without end, cut into epochs.

    An epoch goes on where the one before it ended, so that a source is seen once in full before any of it is seen
    again. Up to ``ranks - 1`` positions at the end of an epoch, too few to give each rank one, are left to the next.

    Bad samples have no place in the order. If a sample has become unreadable since it was indexed, the next good one
    of its source is repeated in its place: to skip it, all other ranks would have to learn of it.

    Args:
        sources: Data sources; those of weight 0 are left out.
        batch_size: Items per batch of one rank.
        seed: Seed of the order, and of the choice of the reply that is learned.
        samples_per_epoch: Positions of an epoch, over all ranks; all samples of the sources by default.
        rank: Number of this rank.
        ranks: Number of ranks.
        bucket_window: Batches among which sequences of like length are brought together; 0 leaves the order as it is.

    Raises:
        UserError: If no source has a weight above 0, or an epoch has not one sample for each rank.
    """

    even = True

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        bucket_window: int = 0,
    ) -> None:
        used = [source for source in sources if source.config.weight > 0]
        if not used:
            weights = {source.name: source.config.weight for source in sources}
            raise UserError(f"train: no source has a weight above 0 ({weights}): give one at least")
        size = samples_per_epoch or sum(map(len, used))
        if size < ranks:
            raise UserError(f"samples_per_epoch={size} is less than one sample for each of {ranks} ranks: raise it")
        super().__init__(used, batch_size, size, rank, ranks)
        self.seed, self.bucket_window = seed, bucket_window
        self.epoch, self.batches_before, self.before = 0, 0, 0
        self._mixture = Mixture([source.config.weight for source in used])
        self._orders = [Shuffle([len(kept) for kept in source.kept], seed, source.name) for source in used]
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
    ) -> None:
        """Goes to a place.

        Args:
            epoch: Number of the epoch, from 0.
            samples_seen: Positions of the epoch that all ranks together have used.
            batches_seen: Batches in which they did; they count in the length, as Lightning expects.
            before: Positions used before the epoch; by default as many as this number of ranks uses.
            group: Samples of a batch of all ranks with which the epoch was begun; by default as now.
        """
        if before is None:
            steps = epoch - self.epoch
            whole = positions_used(0, self.size, self.batch_size, self.ranks)
            before = self.before if not steps else self._end() + (steps - 1) * whole if steps > 0 else epoch * whole
        self.epoch, self.before = epoch, before
        self.start, self.batches_before = samples_seen, batches_seen
        self.group = group or self.batch_size * self.ranks
        self._buckets = None
        if self.bucket_window:
            self._buckets = Buckets(self.size, self.bucket_window, self.group, self._length, f"{self.seed}/{epoch}")

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
        place = {"epoch": self.epoch, "samples_seen": min(samples, self.size), "batches_seen": batches_seen}
        place |= {"before": self.before, "group": self.group}
        if batches_seen >= len(self):
            group = self.batch_size * self.ranks
            place = {"epoch": self.epoch + 1, "samples_seen": 0, "batches_seen": 0}
            place |= {"before": self._end(), "group": group}
        return {**place, "seed": self.seed, "manifest": self.manifest}

    def position(self, place: int) -> int:
        """The position at a place of the order in which they are used."""
        return place if self._buckets is None else self._buckets(place)

    def item(self, position: int, missed: list[tuple[str, str]]) -> Item:
        """The reply at a position of the epoch."""
        source, which, draw = self._draw(position)
        for offset in range(_TRIES):
            place = self._orders[which](draw + offset)
            sample = self._read(source, *place, missed)
            if sample is not None:
                item = self._choose(sample, [*source.lengths(*place)], position)._replace(place=(which, *place))
                return _described(item) if source.config.describe else item
        reasons = ", ".join(f"{count} x {why}" for (_, why), count in Counter(missed).most_common())
        raise UserError(
            f"source {source.name!r}: {_TRIES} unreadable samples in a row ({reasons}): check {source.config.path}"
        )

    def _read(self, source: Source, shard: int, index: int, missed: list[tuple[str, str]]) -> Sample | None:
        """A sample; without words and pictures if its features are kept."""
        if source.features is not None and source.features.form.whole:
            return source.features.sample(source.number(shard, index), source.name)
        return super()._read(source, shard, index, missed)

    def _draw(self, position: int) -> tuple[Source, int, int]:
        """Source of a position, its number, and how often it was drawn before."""
        which, draw = self._mixture(self.before + position)
        return self.sources[which], which, draw

    def _rng(self, position: int) -> random.Random:
        return random.Random(f"{self.seed}/{self.epoch}/{position}")

    def _choose(self, sample: Sample, replies: list[int], position: int) -> Item:
        """One reply of a conversation and one of its pictures, drawn at random."""
        rng = self._rng(position)
        turn = rng.choice(replies)
        _, pictures = segments_of(sample.turns[turn], sample)
        drawn = [segment for segment, picture in enumerate(pictures) if picture is not None]
        lot = f"{self.seed}/{self.epoch}/{position}/look"
        return Item(sample, turn, rng.choice(drawn) if drawn else None, position, lot)

    def _length(self, position: int) -> int:
        """Length of the sequence at a position, in bytes of text: the random draw of `_choose`, without reading."""
        source, which, draw = self._draw(position)
        lengths = source.lengths(*self._orders[which](draw))
        return lengths[self._rng(position).choice([*lengths])]


class EvalStream(_Stream):
    """Evaluation: every reply of every good sample once and in order, on whichever rank.

    Args:
        sources: Data sources.
        batch_size: Items per batch of one rank.
        limit: Number of replies to evaluate, spread evenly over all; all of them by default.
        rank: Number of this rank.
        ranks: Number of ranks.
        draw: Seed of a random draw of the replies instead; they keep their order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        batch_size: int,
        limit: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        draw: int | None = None,
    ) -> None:
        views = [(number, *reply) for number, source in enumerate(sources) for reply in source.replies()]
        size = min(limit or len(views), len(views))
        even = [k * len(views) // size for k in range(size)]
        lots = even if draw is None else sorted(random.Random(draw).sample(range(len(views)), size))
        self._views = [views[k] for k in lots]
        super().__init__(sources, batch_size, size, rank, ranks)

    def item(self, position: int, missed: list[tuple[str, str]]) -> Item | None:
        """The reply at a position, None if its sample has become unreadable."""
        number, shard, index, turn = self._views[position]
        sample = self._read(self.sources[number], shard, index, missed)
        if sample is None:
            return None
        item = Item(sample, turn, None, position, place=(number, shard, index))
        return _described(item) if self.sources[number].config.describe else item


def _described(item: Item) -> Item:
    """The item with the picture of its reply to be described."""
    sample, turn = as_description(item.sample, item.turn, item.target)
    return item if sample is item.sample else item._replace(sample=sample, turn=turn, target=None)
