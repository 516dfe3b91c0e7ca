"""Keeps losses and gradients that are not finite away from the weights, and wrecked weights away from checkpoints."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from m2chat.errors import TrainingDivergedError

_LOG = logging.getLogger(__name__)
_WINDOW = 20
"""Steps over which the median of the loss runs: one batch that is easy or hard does not move it."""
_LARGEST = 1e30
"""Larger losses count as this one: their sum over processes must stay finite."""


class NonFiniteGuard(Callback):
    """Skips an optimiser step whose loss or gradients hold NaN or infinity, and stops a training that diverges.

    A skipped step changes neither weights nor the optimiser's averages; the learning-rate schedule goes on. All
    processes skip together. The number of skipped steps is logged as ``train/skipped_steps``.

    Weights can be wrecked by finite numbers too, as by a learning rate of 1000. A step is *good* if its loss is finite
    and not above both the loss of the first step and `max_rise` times the smallest median that 20 steps in a row have
    had so far. After too many steps in a row that are not good, training stops. A checkpoint counts as good once a good
    step has followed it: until then the files that it replaces are kept, and when the training stops they take its
    place, so that ``last.ckpt`` is good; folders of shares as well.

    Args:
        patience: Steps in a row that may be skipped, or be not good; one more stops the training with an error that
            names the samples.
        max_rise: Loss, in multiples of the smallest running median, up to which a step is good; 0 for any finite one.
    """

    def __init__(self, patience: int = 10, max_rise: float = 10.0) -> None:
        if patience < 0:
            raise ValueError(f"nonfinite.patience must be 0 or more steps, not {patience}")
        if not (max_rise == 0 or 1 < max_rise < math.inf):
            raise ValueError(f"nonfinite.max_rise must be more than 1, or 0 to accept any finite loss, not {max_rise}")
        self.patience, self.max_rise = patience, max_rise
        self.skipped = 0
        self._in_a_row = 0  # steps that were skipped
        self._high_in_a_row = 0  # steps that were not good, for whichever reason
        self._losses: deque[float] = deque(maxlen=_WINDOW)  # of good steps
        self._lowest = math.inf  # median of them so far
        self._first = math.inf  # loss of the first step
        self._loss: Tensor | None = None  # of the step at work
        self._samples: list[str] = []  # of the step at work
        self._bad_samples: list[str] = []  # of the steps in a row that were not good

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets checkpoints keep what they replace until a step has shown that they are good."""
        if (keep := getattr(trainer.strategy.checkpoint_io, "keep_replaced", None)) is not None:
            keep()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers which samples are at work."""
        self._samples += [sample.id for sample in getattr(batch, "samples", [])]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Looks at the loss, the sum over the parts of a step; it stays on the device, so that nothing waits for it."""
        value = loss.detach().float().sum()
        self._loss = value if self._loss is None else self._loss + value

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drops the gradients of a bad step: an optimiser passes over parameters that have none.

        Raises:
            TrainingDivergedError: If more than `patience` steps in a row were bad.
        """
        gradients = [_local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = math.isfinite(get_total_norm(gradients).item())
        loss = 0.0 if self._loss is None else self._loss.item()
        # One number carries both over the processes: that of a bad step is NaN, and so is any mean with it.
        mean = min(loss, _LARGEST) if finite and math.isfinite(loss) else math.nan
        if trainer.world_size > 1:
            mean = float(
                trainer.strategy.reduce(torch.tensor(mean, device=trainer.strategy.root_device), reduce_op="mean")
            )
        samples, self._samples, self._loss = self._samples, [], None
        if self._is_good(mean):
            self._in_a_row = self._high_in_a_row = 0
            self._bad_samples = []
            _settle(trainer, good=True)
            return
        self._high_in_a_row += 1
        self._bad_samples += samples
        if math.isfinite(mean):
            self._in_a_row = 0
            if self._high_in_a_row > self.patience:
                self._stop(trainer, f"the loss was {mean:.3g} or not finite", "at its best, the median of 20 steps was "
                           f"{self._lowest:.3g}, and nonfinite.max_rise is {self.max_rise:g}")  # fmt: skip
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        if self._high_in_a_row > self.patience:
            self._stop(trainer, "the loss or its gradients were not finite", "the weights hold none of them")
        _LOG.warning(
            "step %d skipped, its loss or gradients are not finite (%d in a row, %d in all); samples: %s",
            trainer.global_step, self._in_a_row, self.skipped, ", ".join(samples) or "unknown",
        )  # fmt: skip

    def _is_good(self, loss: float) -> bool:
        """Whether the loss of a step shows that the weights before it are good."""
        if not math.isfinite(loss):
            return False
        if self._first == math.inf:
            self._first = self._lowest = loss
        if self.max_rise and loss > max(self._first, self.max_rise * self._lowest):
            return False
        self._losses.append(loss)
        if len(self._losses) == _WINDOW:
            self._lowest = min(self._lowest, median(self._losses))
        return True

    def _stop(self, trainer: Trainer, what: str, why: str) -> None:
        kept = _settle(trainer, good=False)
        names = ", ".join(self._bad_samples) or "unknown"
        last = f" The last good checkpoint is {kept[-1]}." if kept else ""
        raise TrainingDivergedError(
            f"{what} for {self._high_in_a_row} steps in a row, up to step {trainer.global_step} (nonfinite.patience is "
            f"{self.patience}; {why}).{last} Lower the learning rate, or look at these samples: {names}"
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the count."""
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the checkpoints as they are: no further step will tell whether they are good."""
        _settle(trainer, good=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides on the last checkpoints by the last step."""
        if stage == "fit":
            kept = _settle(trainer, good=not self._high_in_a_row)
            if kept:
                _LOG.warning(
                    "the training ends after %d steps whose loss is far above its best (%.3g): %s is the last good "
                    "checkpoint", self._high_in_a_row, self._lowest, kept[-1],
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The counts, for checkpoints."""
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "high_in_a_row": self._high_in_a_row,
            "losses": list(self._losses),
            "lowest": self._lowest,
            "first": self._first,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the counts of a checkpoint; earlier versions had the first two."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._high_in_a_row = state_dict.get("high_in_a_row", self._in_a_row)
        self._losses = deque(state_dict.get("losses", ()), _WINDOW)
        self._lowest, self._first = (state_dict.get(name, math.inf) for name in ("lowest", "first"))


def _settle(trainer: Trainer, good: bool) -> list[Any]:
    """Decides on the checkpoints since the last good step; returns the good ones that took the place of wrecked."""
    settle = getattr(trainer.strategy.checkpoint_io, "settle", None)
    return list(settle(good)) if settle is not None else []


def _local(gradient: Tensor) -> Tensor:
    """This process's share of a sharded gradient, or the gradient itself."""
    to_local = getattr(gradient, "to_local", None)
    return to_local() if to_local is not None else gradient
