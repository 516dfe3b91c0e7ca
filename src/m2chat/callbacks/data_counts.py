"""What was left out of the data, and why."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer


class DataCounts(Callback):
    """Logs ``data/skipped`` and ``data/skipped/<reason>``: bad samples and files of the training data.

    What was found when the shards were indexed is logged at the start; what could not be read since then is added,
    over all ranks and their workers.

    Args:
        every: Batches after which the counts are logged anew.
    """

    def __init__(self, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"DataCounts.every must be at least 1 batch, not {every}")
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what is known from the start."""
        self._log(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs once in a while."""
        if (batch_idx + 1) % self.every == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what there is at the end."""
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        skips = getattr(trainer, "datamodule", None) and trainer.datamodule.skips["train"]  # type: ignore[attr-defined]
        if not skips:
            return
        # Every rank indexes the same shards, but each misses samples of its own.
        missed = [skips.missed]
        if dist.is_available() and dist.is_initialized():
            missed = [Counter() for _ in range(dist.get_world_size())]
            dist.all_gather_object(missed, skips.missed)
        counts: Counter[str] = Counter()
        for part in (skips.indexed, *missed):
            for (_, reason), count in part.items():
                counts[reason] += count
        values = {f"data/skipped/{_tag(reason)}": float(count) for reason, count in counts.items()}
        for logger in trainer.loggers:
            logger.log_metrics({"data/skipped": float(counts.total()), **values}, step=trainer.global_step)


def _tag(reason: str) -> str:
    """A reason as a part of a tag."""
    return re.sub(r"\W+", "_", reason).strip("_")
