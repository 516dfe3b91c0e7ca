"""The lines that show how far a run is, and the table before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from torch import Tensor, nn

from m2chat.callbacks.progress import PartsSummary, ProgressLines, default_callbacks, duration, parts_table


class Clock(Callback):
    """A clock of which each batch of training takes 20 s, one of validation 100 s."""

    def __init__(self) -> None:
        self.now = 1000.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 20

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 100

    def on_test_batch_start(self, *_: Any) -> None:
        self.now += 25


class Model(LightningModule):
    """One weight; its loss is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight.sum() * 0 + 2.0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., list[str]]]:
    """What a run with these settings prints, without the time of day in front."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    data = torch.utils.data.DataLoader(torch.zeros(16, 1), batch_size=4)

    def run(what: str, **settings: Any) -> list[str]:
        bar = ProgressLines()
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
            num_sanity_val_steps=0, callbacks=[clock, bar], **settings,
        )  # fmt: skip
        capsys.readouterr()
        if what == "fit":
            trainer.fit(Model(), data, data)
        else:
            trainer.test(Model(), data, verbose=False)
        printed = capsys.readouterr().out.splitlines()
        assert all(line[:8].replace(":", "").isdigit() for line in printed)
        return [line[9:] for line in printed]

    yield run


@pytest.mark.filterwarnings("ignore")
def test_training_prints_a_line_a_minute(lines: Callable[..., list[str]]) -> None:
    assert lines("fit", max_epochs=2, limit_val_batches=1) == [
        "step 3 of 8, epoch 1 of 2, loss 2, 0.2 samples/s, 1 min 40 s left",
        "validation batch 1 of 1",
        # The hundred seconds of validation delay the line and the end, and do not slow the samples down.
        "step 5 of 8, epoch 2 of 2, loss 2, 0.2 samples/s, 2 min 0 s left",
        "step 8 of 8, epoch 2 of 2, loss 2, 0.2 samples/s",
        "validation batch 1 of 1",
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_an_end_and_one_of_a_moment(lines: Callable[..., list[str]]) -> None:
    assert lines("fit", max_steps=1, max_epochs=-1, limit_val_batches=0) == [
        "step 1 of 1, epoch 1, loss 2, 0.2 samples/s"
    ]


def test_evaluation_prints_a_line_a_minute(lines: Callable[..., list[str]]) -> None:
    assert lines("test") == ["test batch 3 of 4, 25 s left", "test batch 4 of 4"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7510, "2 h 5 min"), (90000, "25 h 0 min")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_table_counts_each_parameter_once() -> None:
    model = nn.Module()
    model.inner = nn.ModuleDict({"first": nn.Linear(10, 200), "second": nn.Linear(2, 1), "empty": nn.ReLU()})
    model.inner["second"].also = model.inner["first"]
    model.inner["first"].requires_grad_(False)
    assert parts_table(model).splitlines() == [
        "part    parameters  trained",
        "first        2,200        0",
        "second           3        3",
        "all          2,203        3",
    ]


@pytest.mark.parametrize(
    ("settings", "is_terminal", "kinds"),
    [
        ({}, False, {PartsSummary, ProgressLines}),
        ({}, True, {PartsSummary}),
        ({"enable_progress_bar": False, "enable_model_summary": False}, False, set()),
        ({"callbacks": [ModelSummary(), TQDMProgressBar()]}, False, set()),
        ({"callbacks": TQDMProgressBar()}, False, {PartsSummary}),
    ],
)
def test_what_prints_by_default(
    settings: dict[str, Any], is_terminal: bool, kinds: set[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert {type(callback) for callback in default_callbacks(settings)} == kinds
