"""The stream of replies that evaluation reads."""

from __future__ import annotations

import random
from collections.abc import Sequence

from m2chat.data.dataset import Source
from m2chat.data.items import Item, ItemStream, described


class EvalStream(ItemStream):
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
        super().__init__(batch_size, size, rank, ranks)
        self.sources = list(sources)

    def item(self, position: int, missed: list[tuple[str, str]]) -> Item | None:
        """The reply at a position, None if its sample has become unreadable."""
        number, shard, index, turn = self._views[position]
        sample = self._read(self.sources[number], shard, index, missed)
        if sample is None:
            return None
        item = Item(sample, turn, None, position, place=(number, shard, index))
        return described(item) if self.sources[number].config.describe else item
