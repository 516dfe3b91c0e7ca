"""The micro model sharded over two processes learns exactly what it learns in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2chat.models.checkpoints import read_checkpoint
from m2chat.training.strategy import M2ChatFSDPStrategy

STEPS = 5  # epochs have 4
SAVED = 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stage", "shard_frozen"),
    [
        ("describe", False),
        ("m3ft", True),
        pytest.param("describe", True, marks=pytest.mark.slow),
        pytest.param("align", True, marks=pytest.mark.slow),
        pytest.param("m3ft", False, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_like_one_process(
    micro: Any, on_two_ranks: Callable[..., Any], tmp_path: Path, stage: str, shard_frozen: bool
) -> None:
    path = tmp_path / "sharded.ckpt"

    def task() -> dict[str, Any]:
        options = {"batch_size": 3, "strategy": M2ChatFSDPStrategy(), "save": (SAVED, path)}
        run = micro.fit(stage, tmp_path, STEPS, shard_frozen=shard_frozen, **options)
        named = run.module.model.named_parameters()
        return {"losses": run.losses, "sharded": [name for name, value in named if hasattr(value, "full_tensor")]}

    found = on_two_ranks(task)
    alone = micro.fit(stage, tmp_path, STEPS, batch_size=6)
    parameters = dict(alone.module.model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert set(found["sharded"]) == (set(parameters) if shard_frozen else trained)
    assert_close(found["losses"], alone.losses)

    assert set(read_checkpoint(path)["state_dict"]) == {f"model.{name}" for name in trained}
    assert_close(micro.fit(stage, tmp_path, STEPS, batch_size=6, ckpt=path).losses, alone.losses[SAVED:])


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-5), f"step {step}"
