"""The order of the samples: pure functions of numbers, so that any place of any epoch is computed directly."""

from __future__ import annotations

import random
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_SLOTS = 10_000
"""Draws after which a mixture repeats its pattern of sources: weights are kept to this precision."""


class Mixture:
    """Which source each draw takes: evenly spread, in proportion to the weights.

    Args:
        weights: Weights of the sources, above 0; they need not sum to 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        counts = [1] if len(weights) == 1 else [max(1, round(_SLOTS * weight / total)) for weight in weights]
        slots = sorted(((k + 0.5) / count, source) for source, count in enumerate(counts) for k in range(count))
        self._source = np.array([source for _, source in slots])
        self._counts = counts
        ranks = np.zeros(len(slots), dtype=np.int64)
        for source, count in enumerate(counts):
            ranks[self._source == source] = np.arange(count)
        self._rank = ranks

    def __call__(self, draw: int) -> tuple[int, int]:
        """Source of a draw, and how often that source was drawn before."""
        block, slot = divmod(draw, len(self._source))
        source = int(self._source[slot])
        return source, block * self._counts[source] + int(self._rank[slot])


class Shuffle:
    """The order in which one source is read: every sample once, then all again in another order, without end.

    First the shards are shuffled, then the samples within windows of neighbours: near enough to random, and a
    reader touches only a few shards at a time.

    Args:
        sizes: Number of samples of each shard.
        seed: Seed of the run.
        name: Name of the source, so that two sources of one run differ.
        window: Number of samples in a window.
    """

    def __init__(self, sizes: Sequence[int], seed: int, name: str = "", window: int = 16_384) -> None:
        self.total = sum(sizes)
        self._sizes = tuple(sizes)
        self._seed = (seed, zlib.crc32(name.encode()))
        self._window = window
        self._cycle, self._shards, self._ends = -1, list[int](), list[int]()

    def __call__(self, draw: int) -> tuple[int, int]:
        """Shard and index within the shard of the n-th draw."""
        cycle, place = divmod(draw, self.total)
        window, offset = divmod(place, self._window)
        start = window * self._window
        size = min(self._window, self.total - start)
        place = start + int(_permutation((*self._seed, cycle, window), size)[offset])
        if cycle != self._cycle:
            self._shards = np.random.default_rng((*self._seed, cycle)).permutation(len(self._sizes)).tolist()
            self._ends = [*accumulate(self._sizes[shard] for shard in self._shards)]
            self._cycle = cycle
        at = bisect_right(self._ends, place)
        return self._shards[at], place - (self._ends[at - 1] if at else 0)


@lru_cache(maxsize=16)
def _permutation(seed: tuple[int, ...], size: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)


@dataclass(frozen=True)
class Lanes:
    """How the draws of a run are dealt to lanes: series that are read side by side, each from shards of its own.

    With as many lanes as there are reading processes, and blocks of a batch, every process reads one lane alone.

    Args:
        count: Number of lanes.
        block: Draws that a lane gets in a row.
    """

    count: int = 1
    block: int = 1

    def __call__(self, draw: int) -> tuple[int, int]:
        """Lane of a draw, and how many draws the lane had before."""
        turn, offset = divmod(draw, self.count * self.block)
        lane, place = divmod(offset, self.block)
        return lane, turn * self.block + place


class ShardOrder:
    """The order in which lanes read whole shards: all of them shuffled and dealt out, then again, without end.

    Every shard is read once in each round. Lanes of unequal shards are not at the end of a round at the same time.

    Args:
        shards: Number of shards.
        lanes: Number of lanes.
        seed: Seed of the run.
        name: Name of the source.
    """

    def __init__(self, shards: int, lanes: int, seed: int, name: str) -> None:
        self.shards, self._lanes = shards, lanes
        self._seed = (seed, zlib.crc32(name.encode()))

    def __call__(self, lane: int, turn: int) -> int:
        """The shard that a lane reads after `turn` others."""
        cycle, place = divmod(turn * self._lanes + lane, self.shards)
        return int(_permutation((*self._seed, cycle), self.shards)[place])

    def ends_round(self, lane: int, turn: int) -> bool:
        """Whether the shard that a lane reads next is of another round."""
        place = turn * self._lanes + lane
        return place // self.shards != (place + self._lanes) // self.shards

    def window(self, lane: int, first: int, size: int) -> NDArray[np.int64]:
        """The order of the samples of a window of a lane, by the number of its first one."""
        return np.random.default_rng((*self._seed, lane, first)).permutation(size)


def batches_of(start: int, stop: int, batch_size: int, rank: int, ranks: int, *, even: bool) -> list[range]:
    """One rank's batches of a stretch of positions.

    Step after step the ranks take `batch_size` positions each, side by side, so that the positions of a step depend
    on the global batch size alone. The last step shares out what is left.

    Args:
        start: First position.
        stop: End of the positions, exclusive.
        batch_size: Positions per batch of one rank.
        rank: Number of the rank.
        ranks: Number of ranks.
        even: Whether all ranks must get batches of one size, as training does; then up to ``ranks - 1`` of the last
            positions are left out. Otherwise no position is.

    Returns:
        Positions of each batch; an empty batch never occurs.
    """
    step = batch_size * ranks
    whole = (stop - start) // step
    found = [range(first := start + k * step + rank * batch_size, first + batch_size) for k in range(whole)]
    left = stop - start - whole * step
    share, over = divmod(left, ranks)
    extra = 0 if even else over
    first = start + whole * step + rank * share + min(rank, extra)
    last = range(first, first + share + (rank < extra))
    return [*found, last] if last else found


def positions_used(start: int, stop: int, batch_size: int, ranks: int) -> int:
    """End, exclusive, of the positions that all ranks use if they get batches of one size, see `batches_of`."""
    left = stop - start
    return stop - (left % (batch_size * ranks)) % ranks


class Buckets:
    """An order in which the positions of a batch have sequences of like length, so that little is padded.

    The positions of a window are sorted by length and cut into groups, one a batch of all ranks; the groups are
    shuffled. The positions behind the last whole group but one keep their place: up to ``ranks - 1`` of the
    last positions of an epoch may be left to the next, and those must be the last of the order too.

    Args:
        size: Positions of an epoch.
        window: Groups of a window.
        group: Positions of a group.
        length: Function from a position to the length of its sequence.
        seed: Seed of the order of the groups.
    """

    def __init__(self, size: int, window: int, group: int, length: Callable[[int], int], seed: str) -> None:
        self._sorted = max(0, size // group - 1) * group
        self._window, self._group, self._length, self._seed = window * group, group, length, seed
        self._at, self._order = -1, list[int]()

    def __call__(self, place: int) -> int:
        """The position that stands at a place of the order."""
        if place >= self._sorted:
            return place
        window, offset = divmod(place, self._window)
        if window != self._at:
            start = window * self._window
            positions = range(start, min(start + self._window, self._sorted))
            ordered = sorted(positions, key=lambda position: (self._length(position), position))
            groups = [ordered[k : k + self._group] for k in range(0, len(ordered), self._group)]
            random.Random(f"{self._seed}/{window}").shuffle(groups)
            self._at, self._order = window, [position for group in groups for position in group]
        return self._order[offset]
