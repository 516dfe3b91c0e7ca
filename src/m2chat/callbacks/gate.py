"""Histograms of the gate and of the cosine that it follows."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class GateHistogram(Callback):
    """Writes ``gate`` and ``cosine`` of the samples that have a context picture.

    At 7B raw cosines may crowd near 1, and then a gate says the same of every task: look here first.

    Args:
        every: Training steps between histograms.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._seen: dict[str, list[torch.Tensor]] = {"gate": [], "cosine": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collects, and writes from time to time."""
        if not trainer.is_global_zero:
            return  # the others write nothing, so what they collected would only grow
        for name, values in self._seen.items():
            if isinstance(outputs, dict) and name in outputs:
                values.append(outputs[name].float())  # on its device: to fetch it, a GPU would be waited for
        if (batch_idx + 1) % self.every:
            return
        writer: Any = getattr(trainer.logger, "experiment", None)
        for name, values in self._seen.items():
            joined = torch.cat(values).cpu() if values else torch.empty(0)
            if len(joined) and hasattr(writer, "add_histogram"):
                writer.add_histogram(f"gate/{name}", joined, trainer.global_step)
            values.clear()
