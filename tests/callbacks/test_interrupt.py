from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from m2chat.callbacks.interrupt import InterruptGuard


class Interrupted(LightningModule):
    """Sends its own process a signal at some batch."""

    def __init__(self, number: int = 0, batch: int = -1, in_validation: bool = False, early: bool = False) -> None:
        super().__init__()
        self.in_validation, self.early = in_validation, early
        self.validated: list[tuple[bool, int]] = []
        self.layer = nn.Linear(2, 1)
        self.number, self.batch = number, batch
        self.seen: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(self.trainer.global_step)
        if batch_idx == self.batch and not self.in_validation:
            os.kill(os.getpid(), self.number)
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append((self.trainer.sanity_checking, batch_idx))
        if self.in_validation and batch_idx == self.batch and self.trainer.sanity_checking == (self.batch == 0):
            os.kill(os.getpid(), self.number)

    test_step = validation_step

    def configure_model(self) -> None:
        if self.early:
            os.kill(os.getpid(), self.number)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(16, 2), batch_size=2)

    def val_dataloader(self) -> Any:
        return self.train_dataloader() if self.in_validation else []

    test_dataloader = train_dataloader


def trainer(root: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        default_root_dir=root, accelerator="cpu", max_epochs=1, callbacks=[InterruptGuard()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_exits_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    module = Interrupted(number, batch=2)
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path).fit(module)
    assert stopped.value.code == code
    assert module.seen == [0, 1, 2]
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert torch.equal(saved["state_dict"]["layer.weight"], module.layer.weight)
    assert {name: signal.getsignal(name) for name in handlers} == handlers


def test_accumulated_gradients_are_not_lost(tmp_path: Path) -> None:
    module = Interrupted(signal.SIGTERM, batch=4)
    with pytest.raises(SystemExit):
        trainer(tmp_path, accumulate_grad_batches=4).fit(module)
    assert len(module.seen) == 8
    assert torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)["global_step"] == 2


def test_the_saved_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Interrupted()
    trainer(tmp_path).fit(whole)
    torch.manual_seed(0)
    with pytest.raises(SystemExit):
        trainer(tmp_path).fit(Interrupted(signal.SIGTERM, batch=2))
    resumed = Interrupted()
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    trainer(tmp_path).fit(resumed, ckpt_path=path, weights_only=True)
    assert resumed.seen == [3, 4, 5, 6, 7]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_long_validation_does_not_delay_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Interrupted(in_validation=True)
    trainer(tmp_path, val_check_interval=4).fit(whole)
    torch.manual_seed(0)
    module = Interrupted(signal.SIGUSR1, batch=3, in_validation=True)
    with pytest.raises(SystemExit) as stopped:
        trainer(tmp_path, val_check_interval=4).fit(module)
    assert stopped.value.code == 138
    assert module.seen == [0, 1, 2, 3] and module.validated[-1] == (False, 3)
    resumed = Interrupted(in_validation=True)
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    trainer(tmp_path, val_check_interval=4).fit(resumed, ckpt_path=path, weights_only=True)
    assert resumed.seen == [4, 5, 6, 7]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("where", ["model", "sanity check", "test"])
def test_where_nothing_is_trained_it_ends_at_once(tmp_path: Path, number: int, where: str) -> None:
    before = signal.getsignal(number)
    module = Interrupted(number, batch=1 if where == "test" else 0, in_validation=True, early=where == "model")
    run = trainer(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run.test(module) if where == "test" else run.fit(module)
    assert stopped.value.code == 128 + number
    assert len(module.validated) == {"model": 0, "sanity check": 1, "test": 2}[where] and not module.seen
    assert not (tmp_path / "checkpoints").exists()
    assert signal.getsignal(number) == before


def test_nothing_happens_without_a_signal(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer(tmp_path).fit(Interrupted())
    assert not (tmp_path / "checkpoints").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        guard = InterruptGuard()
        guard._take_over(waits=True)
        guard._handle(signal.SIGTERM, None)
        guard._handle(signal.SIGTERM, None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
