"""Two processes train and save in shares; one file of them goes on in one process, the folder itself in four."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.models.checkpoints import read_checkpoint
from m2chat.training.consolidate import consolidate
from m2chat.training.strategy import M2ChatFSDPStrategy

STEPS, SAVED = 4, 2
STAGES = pytest.mark.parametrize("stage", ["describe", pytest.param("m3ft", marks=pytest.mark.slow)])


class SaveBoth(Callback):
    """Saves the same moment in shares and as one file.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED:
            for name, shares in (("shares.ckpt", True), ("file.ckpt", False)):
                trainer.strategy._save_distributed_checkpoint = shares  # type: ignore[attr-defined]
                trainer.save_checkpoint(self.folder / name)


def moments(state: dict[str, Any]) -> list[torch.Tensor]:
    """The optimiser's first moments in its own order."""
    order = [number for group in state["param_groups"] for number in group["params"]]
    return [state["state"][number]["exp_avg"] for number in order if number in state["state"]]


@pytest.mark.filterwarnings("ignore")
@STAGES
def test_shares_become_one_file_and_go_on_in_one_process_and_in_four(
    micro: Any, on_ranks: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    shares, file, whole = tmp_path / "shares.ckpt", tmp_path / "file.ckpt", tmp_path / "whole.ckpt"

    def train(batch_size: int, **more: Any) -> list[dict[str, float]]:
        strategy = M2ChatFSDPStrategy()
        losses: list[dict[str, float]] = micro.fit(
            stage, tmp_path, STEPS, batch_size=batch_size, strategy=strategy, **more
        ).losses
        return losses

    two = on_ranks(lambda: train(4, callbacks=(SaveBoth(tmp_path),)), 2)
    four = on_ranks(lambda: train(2, ckpt=shares), 4)
    assert main(["consolidate", str(shares), str(whole)]) == 0
    assert "trained numbers" in capsys.readouterr().out
    alone = micro.fit(stage, tmp_path, STEPS, batch_size=8, ckpt=whole).losses
    for name, found in {"four": four, "alone": alone}.items():
        assert len(found) == STEPS - SAVED, name
        for step, (ours, theirs) in enumerate(zip(found, two[SAVED:], strict=True)):
            assert ours == pytest.approx(theirs, rel=1e-5), (name, step)

    ours, theirs = read_checkpoint(whole), read_checkpoint(file)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys() and ours["m2chat"] == theirs["m2chat"]
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], tensor), name
    pairs = zip(moments(ours["optimizer_states"][0]), moments(theirs["optimizer_states"][0]), strict=True)
    assert all(torch.equal(own, other) for own, other in pairs)

    next(shares.glob("*.distcp")).unlink()
    with pytest.raises(UserError, match="a share is missing or damaged"):
        consolidate(shares, tmp_path / "other.ckpt")
    assert not (tmp_path / "other.ckpt").exists()


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consolidate", str(tmp_path), str(tmp_path / "out.ckpt")]) == 2
    assert "is no checkpoint in shares" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@STAGES
def test_four_ranks_that_accumulate_train_like_one_process(
    micro: Any, on_ranks: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    def task() -> list[dict[str, float]]:
        losses: list[dict[str, float]] = micro.fit(
            stage, tmp_path, 2, batch_size=2, accumulate=2, strategy=M2ChatFSDPStrategy()
        ).losses
        return losses

    found = on_ranks(task, 4)
    alone = micro.fit(stage, tmp_path, 2, batch_size=8, accumulate=2).losses
    assert len(found) == len(alone) > 2
    for ours, theirs in zip(found, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
