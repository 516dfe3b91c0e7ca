"""Keeps losses and gradients that are not finite away from the weights."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from m2chat.errors import TrainingDivergedError

_LOG = logging.getLogger(__name__)


class NonFiniteGuard(Callback):
    """Skips an optimiser step whose loss or gradients hold NaN or infinity, and stops after too many in a row.

    A skipped step changes neither weights nor the optimiser's averages; the learning-rate schedule goes on. All
    processes skip together. The number of skipped steps is logged as ``train/skipped_steps``.

    Args:
        patience: Steps in a row that may be skipped; one more stops the training with an error that names the
            samples.
    """

    def __init__(self, patience: int = 10) -> None:
        if patience < 0:
            raise ValueError(f"nonfinite.patience must be 0 or more steps, not {patience}")
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._loss_finite: Tensor | None = None
        self._samples: list[str] = []  # of the step at work
        self._bad_samples: list[str] = []  # of the steps skipped in a row

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers which samples are at work."""
        self._samples += [sample.id for sample in getattr(batch, "samples", [])]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Looks at the loss; the answer stays on the device, so that nothing waits for it."""
        finite = torch.isfinite(loss.detach()).all()
        self._loss_finite = finite if self._loss_finite is None else self._loss_finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops the gradients of a bad step: an optimiser passes over parameters that have none.

        Raises:
            TrainingDivergedError: If more than `patience` steps in a row were bad.
        """
        gradients = [_local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = torch.isfinite(get_total_norm(gradients)).item()
        finite = finite and (self._loss_finite is None or bool(self._loss_finite))
        everywhere = trainer.strategy.reduce_boolean_decision(bool(finite), all=True)
        samples, self._samples, self._loss_finite = self._samples, [], None
        if everywhere:
            self._in_a_row, self._bad_samples = 0, []
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        self._bad_samples += samples
        names = ", ".join(self._bad_samples) or "unknown"
        if self._in_a_row > self.patience:
            raise TrainingDivergedError(
                f"the loss or its gradients were not finite for {self._in_a_row} steps in a row, up to step "
                f"{trainer.global_step} (nonfinite.patience is {self.patience}); the weights hold none of them. "
                f"Lower the learning rate, or look at these samples: {names}"
            )
        _LOG.warning(
            "step %d skipped, its loss or gradients are not finite (%d in a row, %d in all); samples: %s",
            trainer.global_step, self._in_a_row, self.skipped, ", ".join(samples) or "unknown",
        )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the count."""
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The counts, for checkpoints."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the counts of a checkpoint."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _local(gradient: Tensor) -> Tensor:
    """This process's share of a sharded gradient, or the gradient itself."""
    to_local = getattr(gradient, "to_local", None)
    return to_local() if to_local is not None else gradient
