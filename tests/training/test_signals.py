"""A signal to one of two processes ends both, at the same step and with the same code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from m2chat.callbacks.interrupt import InterruptGuard


class Learner(LightningModule):
    """Sends a signal to its own process, while training or in a validation."""

    def __init__(self, number: int, at: tuple[str, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.number, self.at, self.seen = number, at, [("", -1)]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self._see("train", batch_idx)
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._see("val", batch_idx)

    def _see(self, loop: str, batch_idx: int) -> None:
        self.seen.append((loop, batch_idx))
        if self.number and self.seen[-1] == self.at:
            os.kill(os.getpid(), self.number)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(16, 2), batch_size=2)

    val_dataloader = train_dataloader


def ends(root: Path, number: int, at: tuple[str, int], ranks: tuple[int, ...]) -> list[Any]:
    """What a run of two processes ends with: of each the exit code and the last batch."""
    module = Learner(number if int(os.environ["RANK"]) in ranks else 0, at)
    end: Any = None
    try:
        Trainer(
            default_root_dir=root, accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
            callbacks=[InterruptGuard()], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=3,
        ).fit(module)  # fmt: skip
    except SystemExit as stopped:
        end = stopped.code
    every: list[Any] = [None, None]
    torch.distributed.all_gather_object(every, [end, *module.seen[-1]])
    return every


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("at", [("train", 1), ("val", 2)])
def test_both_end_together(
    tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any], at: tuple[str, int]
) -> None:
    found = on_two_ranks(lambda: ends(tmp_path, signal.SIGUSR1, at, (1,)))
    assert found == [[138, *at]] * 2
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == {"train": 2, "val": 3}[at[0]]
