"""A run that is interrupted goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from m2chat.callbacks.interrupt import InterruptGuard
from m2chat.integrity import verify
from m2chat.models.checkpoints import trainable_state_dict
from m2chat.training.atomic_io import AtomicCheckpointIO

STEPS = 7  # epochs have 4


class Terminates(Callback):
    """Sends SIGTERM in the middle of a step, as a job scheduler would.

    Args:
        step: Counted from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stage", "stop"),
    [
        ("describe", 2),
        ("describe", 5),
        ("align", 2),
        ("align", 5),
        ("m3ft", 2),
        pytest.param("m3ft", 5, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_an_uninterrupted_run(micro: Any, tmp_path: Path, stage: str, stop: int) -> None:
    whole = micro.fit(stage, tmp_path, STEPS)
    with pytest.raises(SystemExit) as end:
        micro.fit(stage, tmp_path, STEPS, callbacks=(Terminates(stop), InterruptGuard()))
    assert end.value.code == 128 + signal.SIGTERM
    path = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert verify(path)
    rest = micro.fit(stage, tmp_path, STEPS, ckpt=path)
    assert isinstance(rest.trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert len(whole.losses) == STEPS and len({tuple(losses.values()) for losses in whole.losses}) == STEPS
    assert rest.losses == whole.losses[stop:]
    assert rest.module.source == f"checkpoint {path}" and whole.module.source == "new"
    expected = trainable_state_dict(whole.module.model)
    found = trainable_state_dict(rest.module.model)
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
