"""Stops a run in good order when the system or the user asks for it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class InterruptGuard(Callback):
    """On SIGTERM, SIGINT or SIGUSR1, saves a checkpoint and ends with exit code 143, 130 or 138.

    While training, the handler only sets a flag, since saving inside one is unsafe; the processes agree on it after
    each optimiser step, and after each batch of a validation in between, and save together, whichever of them got the
    signal. All of them then end with the same code. A second signal ends the process at once. Lightning alone would
    exit with code 0 and save nothing, so that a killed job looks finished.

    Before the first step, and while nothing is trained (``test``, ``validate``, ``predict``), there is nothing to save:
    the run ends at once, with the same codes.

    SLURM sends SIGUSR1 before a job's time is over (``--signal=USR1@120``). Under SLURM with Lightning's automatic
    requeueing, the checkpoint goes where the requeued job looks for it, and the job is requeued.

    Args:
        filename: Name of the checkpoint, beside the other ones of the run.
    """

    def __init__(self, filename: str = "interrupted.ckpt") -> None:
        self.filename = filename
        self._signal = 0
        self._step = 0
        self._waits = False  # whether a signal waits for the end of a step or of a batch of a validation
        self._agrees = True  # whether all processes validate the same number of batches, so that they can agree there
        self._active = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    # When

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes over the signals before the model is made, which takes minutes for a large one."""
        self._take_over(waits=False)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals again, which Lightning has taken meanwhile."""
        self._take_over(waits=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits until it can be followed by all processes together."""
        self._take_over(waits=True)
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
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out whether the processes can agree on a signal in this validation."""
        if not self._waits:
            return self._take_over(waits=False)
        if trainer.world_size > 1:
            batches = float(sum(trainer.num_val_batches))
            most = _maximum(trainer, batches)
            self._agrees = most == -_maximum(trainer, -batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Saves and stops if a signal has come: a validation may take hours.

        Raises:
            SystemExit: With 128 + the signal's number.
        """
        # In the middle of an accumulated step there is nothing to go on from.
        if self._waits and self._agrees and trainer.fit_loop.epoch_loop._should_accumulate() is False:
            self._stop_if_asked(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals again, which Lightning has taken meanwhile."""
        self._take_over(waits=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals again, which Lightning has taken meanwhile."""
        self._take_over(waits=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back; any later, and Lightning would have given back its own before."""
        self._give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._give_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back after a run without training."""
        self._give_back(trainer)

    # What

    def path(self, trainer: Trainer) -> Path:
        """Where the checkpoint goes: the folder of the run's ModelCheckpoint, else of the run."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is None:
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        return Path(folder) / self.filename

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(self._signal), all=False):
            return
        # A process that only heard of it from the others takes their number, and so ends with their code.
        number = signal.Signals(int(_maximum(trainer, float(self._signal))))
        requeue = _requeues(trainer, number)
        path = self.path(trainer)
        if requeue:
            path = Path(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _LOG.warning(
                "stopped by %s after step %d; go on with --ckpt_path %s", number.name, trainer.global_step, path
            )
            if requeue:
                _requeue()
        raise SystemExit(128 + number)

    def _take_over(self, waits: bool) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._active:
            self._signal, self._active, self._process = 0, True, os.getpid()
        self._waits = waits
        for number in _SIGNALS:
            handler = signal.signal(number, self._handle)
            self._previous.setdefault(number, handler)

    def _give_back(self, trainer: Trainer) -> None:
        self._active = self._waits = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
            # Lightning, which met ours when it took over the signals, restores them at its end.
            trainer._signal_connector._original_handlers[signal.Signals(number)] = handler
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that loads data: the training process decides, and ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self._signal or not self._active:  # asked twice: now
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self._signal = number
            if not self._waits:
                raise SystemExit(128 + number)


def _maximum(trainer: Trainer, value: float) -> float:
    """The largest value of all processes."""
    if trainer.world_size == 1:
        return value
    return float(trainer.strategy.reduce(torch.tensor(value, device=trainer.strategy.root_device), reduce_op="max"))


def _requeues(trainer: Trainer, number: signal.Signals) -> bool:
    """Whether a signal is the one by which SLURM announces the end of a job that is to be requeued."""
    environment = trainer._accelerator_connector.cluster_environment
    wanted = getattr(environment, "requeue_signal", None) or signal.SIGUSR1
    return isinstance(environment, SLURMEnvironment) and bool(environment.auto_requeue) and number == wanted


def _requeue() -> None:
    """Puts the job into SLURM's queue again."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    try:
        code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        _LOG.warning("job %s cannot be requeued: %s", job, error)
        return
    _LOG.warning("job %s %s", job, "was requeued" if code == 0 else f"was not requeued: scontrol ended with {code}")
