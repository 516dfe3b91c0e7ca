from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer

from m2chat.callbacks.gate import GateHistogram


class Writer:
    def __init__(self) -> None:
        self.written: list[tuple[str, list[float], int]] = []

    def add_histogram(self, name: str, values: torch.Tensor, step: int) -> None:
        self.written.append((name, values.tolist(), step))


def run(writer: Any, steps: int, rank: int = 0) -> GateHistogram:
    callback = GateHistogram(every=2)
    trainer = SimpleNamespace(is_global_zero=rank == 0, logger=SimpleNamespace(experiment=writer), global_step=0)
    for step in range(steps):
        trainer.global_step = step + 1
        outputs = {"loss": torch.zeros(()), "gate": torch.tensor([step / 4]), "cosine": torch.tensor([step / 8])}
        callback.on_train_batch_end(cast(Trainer, trainer), cast(LightningModule, None), outputs, None, step)
    return callback


def test_both_histograms_every_few_steps() -> None:
    writer = Writer()
    run(writer, 5)
    assert writer.written == [
        ("gate/gate", [0.0, 0.25], 2),
        ("gate/cosine", [0.0, 0.125], 2),
        ("gate/gate", [0.5, 0.75], 4),
        ("gate/cosine", [0.25, 0.375], 4),
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_piles_up(rank: int) -> None:
    writer = Writer()
    callback = run(writer, 4, rank)
    assert not any(callback._seen.values()) and bool(writer.written) == (rank == 0)


def test_a_logger_without_histograms_is_fine() -> None:
    run(None, 4)
