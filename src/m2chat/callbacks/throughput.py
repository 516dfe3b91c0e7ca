"""How fast training is."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``train/samples_per_second``: samples of all processes together, validation left out.

    Args:
        every: Batches over which one value is measured.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"Throughput.every must be at least 1 batch, not {every}")
        self.every = every
        self._restart()

    def _restart(self) -> None:
        self._since: float | None = None
        self._samples = 0
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew; the first batch, which warms everything up, is left out."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, and logs once in a while."""
        now = time.perf_counter()
        if self._since is None:
            self._since = now
            return
        self._samples += len(batch)
        self._batches += 1
        if self._batches == self.every:
            rate = self._samples * trainer.world_size / max(now - self._since, 1e-9)
            self._restart()
            self._since = now
            pl_module.log("train/samples_per_second", rate, batch_size=1, on_step=True, on_epoch=False)
