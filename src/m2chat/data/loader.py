"""From a stream to batches: worker processes, pinned memory, and counts of skipped samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from m2chat.batch import Batch
from m2chat.data.collate import Collator
from m2chat.data.dataset import Source
from m2chat.data.eval_stream import EvalStream
from m2chat.data.feature_batches import FeatureCollator
from m2chat.data.items import Item
from m2chat.data.stream import ShardStream
from m2chat.errors import UserError

log = logging.getLogger(__name__)

_FEWEST = 200
"""Number of samples from which on the share of bad ones is meaningful."""
_LOG_EVERY = 1000
_NO_LOSS = ("link or device", "unknown suffix", "duplicate")
"""Reasons for which a file is skipped without a sample being lost."""


class Skips:
    """Skipped samples, by source and reason.

    Args:
        limit: Share of bad samples above which the run stops: then a whole data set is at fault, not single files.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.indexed: Counter[tuple[str, str]] = Counter()
        """Number of bad samples and files when the shards were indexed: the same on every rank."""
        self.missed: Counter[tuple[str, str]] = Counter()
        """Number of samples that this rank could not read, although they were good when the shards were indexed."""
        self._samples, self._read = 0, 0

    def add(self, source: Source) -> None:
        """Adds the counts of a source's index.

        Raises:
            UserError: If too many samples of all sources so far are bad.
        """
        self._samples += source.samples
        for reason, count in (source.faults + source.files_left_out).items():
            self.indexed[source.name, reason] += count
        self._judge(_lost(self.indexed), self._samples)

    def note(self, missed: Iterable[tuple[str, str]], read: int) -> None:
        """Adds the samples that could not be read for a batch.

        Raises:
            UserError: If too many samples cannot be read.
        """
        self._read += read
        for key in missed:
            self.missed[key] += 1
            if self.missed[key] % _LOG_EVERY == 1:
                log.warning("%s: a sample was skipped: %s (%d so far)", *key, self.missed[key])
        lost = _lost(self.missed)
        self._judge(lost, self._read + lost.total())

    def _judge(self, bad: Counter[tuple[str, str]], samples: int) -> None:
        if samples >= _FEWEST and bad.total() > self.limit * samples:
            reasons = ", ".join(f"{name}: {count} x {why}" for (name, why), count in bad.most_common())
            raise UserError(
                f"{bad.total()} of {samples} samples are bad, more than max_bad_share={self.limit:.3g}: {reasons}. "
                "Repair the shards (`m2chat data inspect PATH` looks at one), or raise data.max_bad_share"
            )


def _lost(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """The counts of what costs a sample."""
    return Counter({key: count for key, count in counts.items() if key[1] not in _NO_LOSS})


@dataclass(frozen=True)
class _Collate:
    """A batch, with source and reason of each sample that was missed for it: both come from the worker process."""

    collator: Collator | FeatureCollator

    def __call__(self, items: Sequence[Item]) -> tuple[Batch, list[tuple[str, str]]]:
        return self.collator.compact(items), [key for item in items for key in item.missed]


class StreamLoader:
    """Batches of a stream, from its place on.

    Each iteration starts fresh worker processes, if any: they inherit the place of the stream, and at some 0.1 s an
    epoch need not be persistent.

    Args:
        stream: Stream of items.
        collator: Collator of the batches.
        skips: Counter of the samples that could not be read.
        num_workers: Number of worker processes.
        prefetch_factor: Batches that each of them prepares ahead.
        pin_memory: Whether the batches go into pinned memory, from where a GPU fetches them while it computes.
        before_iteration: Called before each iteration, to bring the stream to its place.
        before_batch: Called before each batch is handed out.
    """

    def __init__(
        self,
        stream: ShardStream | EvalStream,
        collator: Collator | FeatureCollator,
        skips: Skips,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        before_iteration: Callable[[], None] = lambda: None,
        before_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream, self.collator, self.skips = stream, collator, skips
        self.num_workers, self.prefetch_factor, self.pin_memory = num_workers, prefetch_factor, pin_memory
        self._before_iteration, self._before_batch = before_iteration, before_batch

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        self._before_iteration()  # Now, not with the first batch: worker processes inherit the place.
        loader: DataLoader[Any] = DataLoader(
            self.stream,
            batch_size=None,
            collate_fn=_Collate(self.collator),
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            pin_memory=self.pin_memory,
        )
        return self._counted(iter(loader))

    def _counted(self, batches: Iterator[tuple[Batch, list[tuple[str, str]]]]) -> Iterator[Batch]:
        for batch, missed in batches:
            self.skips.note(missed, len(batch))
            self._before_batch()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module keeps the place. Lightning takes the method as the sign of exact resuming."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see `state_dict`."""
