"""How fast training is, what it waits for, and what memory it takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from m2chat.host_memory import anonymous_bytes
from m2chat.planning.gpus import gpu_of_driver


class Throughput(Callback):
    """Logs how a training goes, once in a while.

    ``train/samples_per_second``: samples of all processes together, validation left out; ``train/data_wait``: share of
    the time between the end of a batch and the begin of the next one, 0-1, in which the loader, and what is done at a
    batch's end, keep the training waiting; ``train/mfu``: useful work as a share of the GPU's peak, 0-1, on GPUs whose
    peak is known (no network that a feature cache replaces is credited, nor padding, nor what is computed again);
    ``train/memory_gb``: most memory of the GPU so far, in 10^9 bytes, and ``train/host_memory_gb``: memory that the
    process has to itself now, on Linux.

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
        self._ended: float | None = None
        self._waited = 0.0
        self._samples = 0
        self._batches = 0
        self._tokens: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew; the first batch, which warms everything up, is left out."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the wait for the batch."""
        if self._ended is not None:
            self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, and logs once in a while."""
        now = self._ended = time.perf_counter()
        if self._since is None:
            self._since = now
            return
        self._samples += len(batch)
        self._batches += 1
        if (mask := getattr(batch, "attention_mask", None)) is not None:
            self._tokens.append(mask.sum())  # on its device: a number would make a GPU wait in every step
        if self._batches == self.every:
            values = self._values(trainer, pl_module, batch, max(now - self._since, 1e-9))
            self._restart()
            self._since = self._ended = now
            for name, value in values.items():
                pl_module.log(f"train/{name}", value, batch_size=1, on_step=True, on_epoch=False)

    def _values(self, trainer: Trainer, module: LightningModule, batch: Any, seconds: float) -> dict[str, float]:
        """What is logged of the last batches, by name."""
        values = {
            "samples_per_second": self._samples * trainer.world_size / seconds,
            "data_wait": min(1.0, self._waited / seconds),
        }
        if module.device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated(module.device) / 1e9
            gpu = gpu_of_driver(torch.cuda.get_device_name(module.device))
            if gpu is not None and (work := self._work(module, batch)) is not None:
                values["mfu"] = work / seconds / gpu.flops
        if (host := anonymous_bytes()) is not None:
            values["host_memory_gb"] = host / 1e9
        return values

    def _work(self, module: Any, batch: Any) -> float | None:
        """Useful operations of the last batches in this process; None of a module that does not count them."""
        work = getattr(module, "useful_work", None)
        if work is None or not self._tokens:
            return None
        tokens = float(torch.stack(self._tokens).sum()) / max(1, self._samples)
        return float(work.of(batch, tokens)) * self._samples / len(batch)
