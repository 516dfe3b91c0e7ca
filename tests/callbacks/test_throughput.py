from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
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


class Waiting(Slow):
    """Waits for each batch as long as it works on it."""

    def train_dataloader(self) -> Any:
        def late(items: list[Tensor]) -> Tensor:
            time.sleep(SECONDS)
            return torch.stack(items)

        return torch.utils.data.DataLoader(torch.ones(32, 2), batch_size=4, collate_fn=late)


def test_the_wait_for_data_and_the_memory_are_logged(tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, callbacks=[Throughput(every=3)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Waiting())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0.2 < logged["train/data_wait"] < 0.9
    assert 0.05 < logged["train/host_memory_gb"] < 20
    assert "train/mfu" not in logged and "train/memory_gb" not in logged  # of a GPU


def test_the_share_of_the_peak_counts_samples_and_their_real_tokens() -> None:
    seen: list[float] = []
    batch = [0, 1]

    class Work:
        def of(self, batch: Any, tokens: float) -> float:
            seen.append(tokens)
            return 10.0

    callback = Throughput()
    callback._tokens, callback._samples = [torch.tensor(60), torch.tensor(40)], 4
    assert callback._work(SimpleNamespace(useful_work=Work()), batch) == 20.0 and seen == [25.0]
    assert callback._work(SimpleNamespace(), batch) is None
