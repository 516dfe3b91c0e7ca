"""Replies to learn from or to evaluate, and what training and evaluation share of the streams that give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from m2chat.data.dataset import Source
from m2chat.data.order import batches_of
from m2chat.data.sources import BadSample
from m2chat.schema import Sample
from m2chat.text.describing import as_description


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


class ItemStream(IterableDataset[list[Item]]):
    """Batches of one rank: the parts that training and evaluation share.

    Args:
        batch_size: Items per batch of one rank.
        size: Positions of an epoch.
        rank: Number of this rank.
        ranks: Number of ranks.
    """

    even = False

    def __init__(self, batch_size: int, size: int, rank: int, ranks: int) -> None:
        super().__init__()
        self.batch_size, self.size, self.rank, self.ranks = batch_size, size, rank, ranks
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


def described(item: Item) -> Item:
    """The item with the picture of its reply to be described."""
    sample, turn = as_description(item.sample, item.turn, item.target)
    return item if sample is item.sample else item._replace(sample=sample, turn=turn, target=None)
