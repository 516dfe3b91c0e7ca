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
from m2chat.data.order import Mixture, Shuffle, batches_of
from m2chat.data.sources import BadSample
from m2chat.errors import UserError
from m2chat.schema import Sample
from m2chat.text.view import replies_of, segments_of

log = logging.getLogger(__name__)

BAD_SHARE = 0.05
"""Share of bad samples above which reading stops: then something is wrong with the data set, not with a file."""
_FEWEST = 200
_LOG_EVERY = 1000
_TRIES = 100


class Item(NamedTuple):
    """A reply to learn from or to evaluate.

    Args:
        sample: The conversation.
        turn: Index of the reply in its turns.
        target: Segment of the reply whose picture is drawn; None means the first that has one.
        position: Of the item in its epoch, the same for any number of ranks and workers.
    """

    sample: Sample
    turn: int
    target: int | None = None
    position: int = 0


class _Stream(IterableDataset[list[Item]]):
    """Batches of one rank: the parts that training and evaluation share.

    Args:
        sources: What to read.
        batch_size: Of one rank.
        size: Positions of an epoch.
        rank: Which rank this is.
        ranks: How many there are.
    """

    even = False

    def __init__(self, sources: Sequence[Source], batch_size: int, size: int, rank: int, ranks: int) -> None:
        super().__init__()
        self.sources, self.batch_size, self.size = list(sources), batch_size, size
        self.rank, self.ranks = rank, ranks
        self.start = 0
        self.counts: Counter[str] = Counter()
        self.read = 0

    def _batches(self) -> list[range]:
        return batches_of(self.start, self.size, self.batch_size, self.rank, self.ranks, even=self.even)

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[Item]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # Whole batches a worker: the loader takes them from the workers in turn, which restores their order.
        for positions in self._batches()[first::step]:
            items = [item for position in positions if (item := self.item(position)) is not None]
            if items:
                yield items

    def item(self, position: int) -> Item | None:
        """What stands at a position, None if it is broken and nothing may stand in for it."""
        raise NotImplementedError

    def _read(self, source: Source, shard: int, index: int) -> Sample | None:
        """A sample, or None and a count of the reason."""
        self.read += 1
        try:
            return source.read(shard, index)
        except (BadSample, OSError) as error:
            reason = error.reason if isinstance(error, BadSample) else f"unreadable file ({type(error).__name__})"
        self.counts[reason] += 1
        if self.counts[reason] % _LOG_EVERY == 1:
            entry = source.shards[shard].entries[source.kept[shard][index]]
            log.warning(
                "skipped sample %s of %s: %s (%d so far)",
                entry.key,
                source.shards[shard].path,
                reason,
                self.counts[reason],
            )
        if self.read >= _FEWEST and self.counts.total() > BAD_SHARE * self.read:
            reasons = ", ".join(f"{count} x {why}" for why, count in self.counts.most_common())
            raise UserError(
                f"{self.counts.total()} of {self.read} samples are bad, more than {BAD_SHARE:.0%}: {reasons}. "
                f"Check the shards of {', '.join(item.config.path for item in self.sources)}"
            )
        return None


class ShardStream(_Stream):
    """Training: a weighted mixture without end, cut into epochs.

    Epoch e goes on where epoch e-1 ended, so that a source is seen once in full before any of it is seen again.
    A bad sample is replaced by the next good one of its source.

    Args:
        sources: What to read; those of weight 0 are left out.
        batch_size: Of one rank.
        seed: Of the order, and of which reply of a conversation is learned.
        samples_per_epoch: Positions of an epoch, over all ranks; all samples of the sources by default.
        rank: Which rank this is.
        ranks: How many there are.

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
    ) -> None:
        used = [source for source in sources if source.config.weight > 0]
        if not used:
            weights = {source.name: source.config.weight for source in sources}
            raise UserError(f"train: no source has a weight above 0 ({weights}): give one at least")
        size = samples_per_epoch or sum(map(len, used))
        if size < ranks:
            raise UserError(f"samples_per_epoch={size} is less than one sample for each of {ranks} ranks: raise it")
        super().__init__(used, batch_size, size, rank, ranks)
        self.seed = seed
        self.epoch, self.batches_before = 0, 0
        self._mixture = Mixture([source.config.weight for source in used])
        self._orders = [Shuffle([len(kept) for kept in source.kept], seed, source.name) for source in used]
        self.manifest = hashlib.sha256("\n".join(source.manifest for source in used).encode()).hexdigest()[:16]

    def start_at(self, epoch: int, samples_seen: int = 0, batches_seen: int = 0) -> None:
        """Goes to a place.

        Args:
            epoch: From 0.
            samples_seen: Positions of it that all ranks together have used.
            batches_seen: Batches in which they did; they count in the length, as Lightning wants it.
        """
        self.epoch, self.start, self.batches_before = epoch, samples_seen, batches_seen

    def __len__(self) -> int:
        """Batches of the epoch, those before the place where it was resumed included."""
        return self.batches_before + super().__len__()

    def state(self, batches_seen: int) -> dict[str, Any]:
        """The place after some batches of this epoch, the same on every rank.

        Args:
            batches_seen: Batches of the epoch that this rank has used.
        """
        samples = self.start + (batches_seen - self.batches_before) * self.batch_size * self.ranks
        place = {"epoch": self.epoch, "samples_seen": min(samples, self.size), "batches_seen": batches_seen}
        if batches_seen >= len(self):
            place = {"epoch": self.epoch + 1, "samples_seen": 0, "batches_seen": 0}
        return {**place, "seed": self.seed, "manifest": self.manifest}

    def item(self, position: int) -> Item | None:
        """The reply at a position of the epoch."""
        which, draw = self._mixture(self.epoch * self.size + position)
        source = self.sources[which]
        for offset in range(_TRIES):
            sample = self._read(source, *self._orders[which](draw + offset))
            if sample is not None:
                return self._choose(sample, position)
        raise UserError(
            f"source {source.name!r}: {_TRIES} bad samples in a row ({dict(self.counts)}): check {source.config.path}"
        )

    def _choose(self, sample: Sample, position: int) -> Item:
        """One reply of a conversation and one of its pictures, by lot."""
        rng = random.Random(f"{self.seed}/{self.epoch}/{position}")
        turn = rng.choice(replies_of(sample))
        _, pictures = segments_of(sample.turns[turn], sample)
        drawn = [segment for segment, picture in enumerate(pictures) if picture is not None]
        return Item(sample, turn, rng.choice(drawn) if drawn else None, position)


class EvalStream(_Stream):
    """Evaluation: every reply of every sample once and in order, on whichever rank; bad samples are left out.

    Args:
        sources: What to read.
        batch_size: Of one rank.
        limit: Replies to evaluate, spread evenly over all; all of them by default.
        rank: Which rank this is.
        ranks: How many there are.
    """

    def __init__(
        self, sources: Sequence[Source], batch_size: int, limit: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        views = [(number, *reply) for number, source in enumerate(sources) for reply in source.replies()]
        size = min(limit or len(views), len(views))
        self._views = [views[k * len(views) // size] for k in range(size)]
        super().__init__(sources, batch_size, size, rank, ranks)

    def item(self, position: int) -> Item | None:
        """The reply at a position, None if its sample is broken."""
        number, shard, index, turn = self._views[position]
        sample = self._read(self.sources[number], shard, index)
        return None if sample is None else Item(sample, turn, None, position)
