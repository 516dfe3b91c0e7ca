"""What a run says of itself: the model's parts before it, and how far it is where no terminal shows a bar."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from torch import nn


class ProgressLines(ProgressBar):
    """Prints a line once in a while instead of a bar, which a log file cannot show.

    In training: step, epoch, loss of the last batch, samples a second of all processes without the time of validation,
    and the time that the rest will take if it goes on like this. In evaluation: batches and time. The last line comes
    when all is done, however short the run was.

    Args:
        every: Seconds between two lines.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self.every = every
        self._is_enabled = True
        self._begun = self._last = self._paused = self._pause_from = self._last_batch = 0.0
        self._samples = self._first_step = self._done = 0
        self._outputs: Any = None
        self._epoch = 0

    def enable(self) -> None:
        """Prints again."""
        self._is_enabled = True

    def disable(self) -> None:
        """Prints nothing."""
        self._is_enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count."""
        self._begun = self._last = time.monotonic()
        self._first_step, self._samples, self._paused = trainer.global_step, 0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, and prints a line if it is time."""
        self._samples += len(batch) * trainer.world_size
        self._outputs, self._epoch = outputs, trainer.current_epoch  # which is the next one when training has ended
        if time.monotonic() - self._last >= self.every:
            self._train_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last line."""
        if self._samples:
            self._train_line(trainer)

    def _train_line(self, trainer: Trainer) -> None:
        now = time.monotonic()
        steps, total = trainer.global_step, trainer.estimated_stepping_batches
        spent = now - self._last - self._paused
        text = f"step {steps}{_of(total)}, epoch {self._epoch + 1}{_of(trainer.max_epochs)}"
        loss = self._outputs.get("loss") if isinstance(self._outputs, dict) else self._outputs
        if loss is not None:
            text += f", loss {float(loss):.4g}"
        if self._samples and spent > 0:
            text += f", {self._samples / spent:.3g} samples/s"
        if self._first_step < steps < total < math.inf:
            text += f", {duration((now - self._begun) / (steps - self._first_step) * (total - steps))} left"
        self._last, self._samples, self._paused = now, 0, 0.0
        self._print(trainer, text)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of training."""
        self._start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock of training go on."""
        self._paused += time.monotonic() - self._pause_from

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count."""
        self._start()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count."""
        self._start()

    def _start(self) -> None:
        self._pause_from = self._last_batch = time.monotonic()
        self._done = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any, **named: Any
    ) -> None:
        """Prints a line if it is time."""
        if not trainer.sanity_checking:
            self._batch_line(trainer, "validation batch", sum(trainer.num_val_batches))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any, **named: Any
    ) -> None:
        """Prints a line if it is time."""
        self._batch_line(trainer, "test batch", sum(trainer.num_test_batches))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any, **named: Any
    ) -> None:
        """Prints a line if it is time."""
        self._batch_line(trainer, "batch", sum(trainer.num_predict_batches))

    def _batch_line(self, trainer: Trainer, name: str, total: int | float) -> None:
        now = time.monotonic()
        self._done += 1
        if now - self._last_batch < self.every and self._done != total:
            return
        self._last_batch = now
        left = (now - self._pause_from) / self._done * (total - self._done)
        rest = f", {duration(left)} left" if self._done < total < math.inf else ""
        self._print(trainer, f"{name} {self._done}{_of(total)}{rest}")

    def _print(self, trainer: Trainer, text: str) -> None:
        if self._is_enabled and trainer.is_global_zero:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)  # a file would get it only when its buffer is full


class PartsSummary(ModelSummary):
    """Prints before a run which parts the model has, and how many of their parameters are trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table."""
        if trainer.is_global_zero:
            print(parts_table(pl_module), flush=True)


def parts_table(module: nn.Module) -> str:
    """The parts of a model with their parameters, all and trained; of a model within a model, the inner one's parts.

    Args:
        module: The model. Parameters that two parts share count in the first of them.
    """
    parts = dict(module.named_children())
    while len(parts) == 1 and (inner := dict(next(iter(parts.values())).named_children())):
        parts = inner
    seen: set[int] = set()
    rows = [("part", "parameters", "trained")]
    numbers = [0, 0]
    for name, part in parts.items():
        fresh = [parameter for parameter in part.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in fresh}
        counts = [sum(p.numel() for p in fresh), sum(p.numel() for p in fresh if p.requires_grad)]
        if counts[0]:
            rows.append((name, f"{counts[0]:,}", f"{counts[1]:,}"))
            numbers = [total + count for total, count in zip(numbers, counts, strict=True)]
    rows.append(("all", f"{numbers[0]:,}", f"{numbers[1]:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:{widths[0]}}  {all_:>{widths[1]}}  {some:>{widths[2]}}" for name, all_, some in rows)


def default_callbacks(trainer: dict[str, Any]) -> list[Any]:
    """What a run prints with, where its settings do not say otherwise.

    Args:
        trainer: Settings of the trainer.
    """
    given = trainer.get("callbacks") or []
    given = given if isinstance(given, list) else [given]
    more: list[Any] = []
    if trainer.get("enable_model_summary") is not False and not any(isinstance(c, ModelSummary) for c in given):
        more.append(PartsSummary())
    is_bar_wanted = trainer.get("enable_progress_bar") is not False
    if is_bar_wanted and not sys.stdout.isatty() and not any(isinstance(c, ProgressBar) for c in given):
        more.append(ProgressLines())
    return more


def duration(seconds: float) -> str:
    """A time in its two largest units: ``2 h 5 min``, ``3 min 20 s``, ``8 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _of(total: int | float | None) -> str:
    """`` of <total>``; nothing where there is no end."""
    return f" of {int(total)}" if total is not None and 0 < total < math.inf else ""
