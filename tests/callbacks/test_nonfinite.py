from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.errors import TrainingDivergedError
from m2chat.training.atomic_io import AtomicCheckpointIO


@dataclass
class Name:
    id: str


@dataclass
class Numbers:
    values: Tensor
    samples: list[Name] = field(default_factory=list)


class Toy(LightningModule):
    """Learns from batches of which some are poisoned: in the loss, or in the gradient alone."""

    def __init__(self, poison: dict[int, str]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.poison = poison
        self.history: list[Tensor] = []

    def training_step(self, batch: Numbers, batch_idx: int) -> Tensor:
        self.history.append(self.layer.weight.detach().clone())
        loss: Tensor = self.layer(batch.values).square().mean()
        if self.poison.get(batch_idx) == "loss":
            return loss + torch.tensor(float("inf"))  # whose gradients are finite
        if self.poison.get(batch_idx) == "gradient":
            return loss + (self.layer.weight * 0).sum().sqrt()  # finite, but its gradient is not
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)

    def train_dataloader(self) -> Any:
        batches = [Numbers(torch.ones(2, 2), [Name(f"s{index}")]) for index in range(8)]
        return torch.utils.data.DataLoader(batches, batch_size=None)


def fit(root: Path, poison: dict[int, str], guard: NonFiniteGuard, **kwargs: Any) -> Toy:
    torch.manual_seed(0)
    module = Toy(poison)
    Trainer(
        default_root_dir=root, accelerator="cpu", max_epochs=1, callbacks=[guard], logger=False, gradient_clip_val=1.0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs,
    ).fit(module)  # fmt: skip
    module.history.append(module.layer.weight.detach().clone())
    return module


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_changes_nothing_and_training_goes_on(tmp_path: Path, kind: str) -> None:
    guard = NonFiniteGuard()
    module = fit(tmp_path, {3: kind}, guard)
    changed = [not torch.equal(a, b) for a, b in zip(module.history, module.history[1:], strict=False)]
    assert changed == [step != 3 for step in range(8)]
    assert guard.skipped == 1 and bool(torch.isfinite(module.history[-1]).all())
    assert module.trainer.callback_metrics["train/skipped_steps"] == 1


def test_a_bad_part_spoils_its_accumulated_step(tmp_path: Path) -> None:
    guard = NonFiniteGuard()
    module = fit(tmp_path, {2: "loss"}, guard, accumulate_grad_batches=2)
    assert guard.skipped == 1
    assert torch.equal(module.history[2], module.history[4]) and not torch.equal(module.history[4], module.history[6])


def test_too_many_in_a_row_stop_with_the_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row.*patience is 2.*s1, s2, s3$"):
        fit(tmp_path, dict.fromkeys(range(1, 8), "loss"), NonFiniteGuard(patience=2))


def test_good_steps_in_between_reset_the_count(tmp_path: Path) -> None:
    guard = NonFiniteGuard(patience=2)
    fit(tmp_path, dict.fromkeys((0, 1, 3, 4, 6, 7), "gradient"), guard)
    assert guard.skipped == 6
    restored = NonFiniteGuard()
    restored.load_state_dict(guard.state_dict())
    assert restored.skipped == 6


class Wrecked(Toy):
    """Learns at a rate that wrecks it from some batch on, with finite numbers."""

    def __init__(self, lr: float, at: int) -> None:
        super().__init__({})
        self.lr, self.at = lr, at

    def on_train_batch_start(self, batch: Numbers, batch_idx: int) -> None:
        if self.trainer.global_step == self.at:
            self.optimizers().param_groups[0]["lr"] = self.lr  # type: ignore[union-attr, index]


def wreck(root: Path, lr: float, at: int, **kwargs: Any) -> ModelCheckpoint:
    torch.manual_seed(0)
    saver = ModelCheckpoint(root / "checkpoints", every_n_train_steps=1, save_last=True)
    guard = NonFiniteGuard(patience=3)
    run = Trainer(
        default_root_dir=root, accelerator="cpu", max_epochs=9, callbacks=[guard, saver], logger=False,
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    with pytest.raises(TrainingDivergedError, match=r"4 steps in a row.*The last good checkpoint is .*ckpt"):
        run.fit(Wrecked(lr, at))
    return saver


@pytest.mark.parametrize("lr", [1e3, 1e9, 1e19, 1e37])
@pytest.mark.parametrize("at", [2, 30])
def test_the_last_good_checkpoint_stays_when_finite_numbers_wreck_the_weights(
    tmp_path: Path, lr: float, at: int
) -> None:
    wreck(tmp_path, lr, at)
    last = AtomicCheckpointIO().load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == at and float(last["state_dict"]["layer.weight"].abs().max()) < 10
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == [f"epoch={(at - 1) // 8}-step={at}.ckpt", "last.ckpt"]


def test_a_single_hard_batch_and_a_run_that_has_learnt_its_data_are_no_divergence(tmp_path: Path) -> None:
    guard = NonFiniteGuard(patience=3)
    for k, loss in enumerate([8.0] * 30 + [1e3] * 3 + [7.0] + [1e4] * 3 + [1e-9] * 60 + [7.9] * 20):
        good = guard._is_good(loss)
        assert good == (loss < 1e3), k


def test_counts_of_earlier_versions_are_read() -> None:
    guard = NonFiniteGuard()
    guard.load_state_dict({"skipped": 3, "in_a_row": 1})
    assert guard.skipped == 3 and guard._is_good(5.0)


def test_patience_is_checked() -> None:
    with pytest.raises(ValueError, match=r"nonfinite\.patience"):
        NonFiniteGuard(patience=-1)
    with pytest.raises(ValueError, match=r"nonfinite\.max_rise"):
        NonFiniteGuard(max_rise=0.5)
