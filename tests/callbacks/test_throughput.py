from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from m2chat.callbacks.throughput import Throughput

SECONDS = 0.02


class Slow(LightningModule):
    """Takes its time for each batch of four, and much longer for validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(SECONDS)
        loss: Tensor = self.layer(batch).mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(10 * SECONDS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(32, 2), batch_size=4)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=4)


def test_samples_per_second_without_validation(tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, callbacks=[Throughput(every=3)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, val_check_interval=2,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Slow())
    assert "train/samples_per_second" not in trainer.callback_metrics  # never three batches without validation
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, callbacks=[Throughput(every=3)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Slow())
    rate = float(trainer.callback_metrics["train/samples_per_second"])
    assert 0.1 * 4 / SECONDS < rate <= 4 / SECONDS


def test_every_is_checked() -> None:
    with pytest.raises(ValueError, match=r"Throughput\.every"):
        Throughput(every=0)
