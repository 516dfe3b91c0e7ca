"""The samples of an optimiser step: those that a configuration names, or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m2chat.errors import UserError
from m2chat.training.global_batch import settle_global_batch


def trainer(devices: int, accumulated: int = 1) -> Any:
    return SimpleNamespace(world_size=devices, accumulate_grad_batches=accumulated)


@pytest.mark.parametrize(
    ("devices", "batch", "accumulated", "wanted", "expected"),
    [(8, 8, 1, 64, 1), (1, 8, 1, 64, 8), (16, 4, 1, 64, 1), (2, 8, 4, 64, 4), (1, 8, 3, None, 3), (3, 8, 1, None, 1)],
)
def test_accumulation(
    devices: int, batch: int, accumulated: int, wanted: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("m2chat.training.global_batch.rank_zero_info", said.append)
    run = trainer(devices, accumulated)
    settle_global_batch(run, batch, wanted)
    assert run.accumulate_grad_batches == expected
    assert said[0].startswith(f"A step has {devices * batch * expected} samples: {batch} on each of {devices} device")


@pytest.mark.parametrize(
    ("devices", "batch", "accumulated", "message"),
    [
        (16, 8, 1, "are 128 a step: set data.batch_size to 4, or set data.global_batch to 128"),
        (3, 8, 1, "8 samples .* on each of 3 devices are 24 a step: set data.global_batch to 24"),
        (8, 8, 2, "accumulated over 2 batches are 128 a step: leave trainer.accumulate_grad_batches out"),
    ],
)
def test_what_does_not_come_out_is_refused(devices: int, batch: int, accumulated: int, message: str) -> None:
    with pytest.raises(UserError, match=f"data.global_batch=64: .*{message}"):
        settle_global_batch(trainer(devices, accumulated), batch, 64)


@pytest.mark.filterwarnings("ignore")
def test_a_run_on_one_device_takes_the_steps_of_two(micro: Any, tmp_path: Path) -> None:
    whole = micro.fit("align", tmp_path, 2, batch_size=4)
    parts = micro.fit("align", tmp_path, 2, batch_size=2, data={"global_batch": 4})
    assert parts.trainer.accumulate_grad_batches == 2
    theirs = dict(whole.module.model.m3adapter.named_parameters())
    for name, ours in parts.module.model.m3adapter.named_parameters():
        assert ours.detach().sub(theirs[name]).abs().max() < 2e-5, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_replicas_take_the_steps_of_one_process(micro: Any, on_two_ranks: Callable[..., Any], tmp_path: Path) -> None:
    """As configs/paper/ddp.yaml trains, stage 2 too, some of whose tensors get no gradient."""
    alone = micro.fit("m3ft", tmp_path, 3, batch_size=4).losses
    strategy = "ddp_find_unused_parameters_true"
    two = on_two_ranks(lambda: micro.fit("m3ft", tmp_path, 3, batch_size=2, strategy=strategy).losses)
    for ours, theirs in zip(two, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
