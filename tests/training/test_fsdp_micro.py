"""The micro model sharded over two processes learns exactly what it learns in one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard  # noqa: F401  # in the parent, so that the import is not measured

from bases import large_llama, script
from m2chat.host_memory import anonymous_bytes, return_free_memory
from m2chat.integrity import not_verified
from m2chat.models.blank import blank_m2chat
from m2chat.models.build import build_m2chat
from m2chat.models.checkpoints import read_checkpoint
from m2chat.models.config import M3AdapterConfig, NewAdapterConfig
from m2chat.models.memory import lower_parameters
from m2chat.models.trainable import set_trainable, trainable_names
from m2chat.models.units import unit_parameters
from m2chat.training.strategy import M2ChatFSDPStrategy, shard

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


def test_a_process_never_has_more_than_its_share_and_a_unit(
    micro: Any, on_two_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    """Of a model whose language model has 330 MB: the files stay mapped, and units get memory one by one."""
    new = NewAdapterConfig(prompts=2, layers=2, visual_blocks=1, visual_heads=2)
    language = str(large_llama(tmp_path / "llama", 1024, 10))
    backbone = replace(micro.backbone(), language_model=language, adapter="new", new_adapter=new)
    peaks = script("scripts/true_size.py").Peaks

    def build() -> dict[str, float]:
        blank_m2chat(backbone, M3AdapterConfig(width=48, heads=2))  # the libraries take their memory before
        distributed.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (2,))
        return_free_memory()  # what other tests have left would be used again, and not be seen
        watched, before = peaks(os.getpid(), alone=True), anonymous_bytes() or 0
        with not_verified():
            model = build_m2chat(backbone, M3AdapterConfig(width=48, heads=2), settled=False)
        set_trainable(model, trainable_names(model, "align"))
        lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
        units = unit_parameters(model)
        within = {parameter for group in units.values() for parameter in group}
        groups = [*units.values(), [parameter for parameter in model.parameters() if parameter not in within]]
        sizes = [sum(parameter.nbytes for parameter in group) for group in groups]
        shard(model, mesh)
        kept, (peak, _) = (anonymous_bytes() or 0) - before, watched.stop()
        return {"share": sum(sizes) / 2, "unit": max(sizes), "kept": kept, "peak": peak - before}

    found = on_two_ranks(build)
    assert found["share"] > 160e6 and found["unit"] < found["share"] / 4
    assert found["kept"] > 0.9 * found["share"]
    assert found["peak"] < found["share"] + found["unit"] + 50e6
