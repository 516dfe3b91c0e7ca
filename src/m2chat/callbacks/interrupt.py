"""Stops training in good order when the system or the user asks for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptGuard(Callback):
    """On SIGTERM or SIGINT, saves a checkpoint after the step at work and ends with exit code 143 or 130.

    The handler only sets a flag, since saving inside one is unsafe; the processes agree on it after each optimiser
    step and save together, whichever of them got the signal. A second signal ends the process at once. Lightning
    alone would exit with code 0 and save nothing, so that a killed job looks finished.

    Args:
        filename: Of the checkpoint, beside the other ones of the run.
    """

    def __init__(self, filename: str = "interrupted.ckpt") -> None:
        self.filename = filename
        self._signal = 0
        self._step = 0
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals before the first validation batch."""
        self._take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals where there was no sanity check."""
        self._take_over()
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops if a signal has come and the batch ended an optimiser step.

        Raises:
            SystemExit: With 128 + the signal's number.
        """
        if trainer.global_step == self._step:  # gradients are being accumulated, and no checkpoint holds those
            return
        self._step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
            return
        path = self.path(trainer)
        trainer.save_checkpoint(path)
        # A process that only heard of it from the others got no number of its own.
        number = signal.Signals(self._signal or signal.SIGTERM)
        if trainer.is_global_zero:
            _LOG.warning("stopped by %s after step %d; go on with --ckpt_path %s", number.name, self._step, path)
        raise SystemExit(128 + number)

    def path(self, trainer: Trainer) -> Path:
        """Where the checkpoint goes: the folder of the run's ModelCheckpoint, else of the run."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is None:
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        return Path(folder) / self.filename

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back; any later, and Lightning would have given back its own before."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._give_back()

    def _take_over(self) -> None:
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._signal = 0
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # asked twice: now
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number
