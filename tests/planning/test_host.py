"""Memory of the computer: what is planned is what a training takes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from bases import large_llama
from m2chat.host_memory import anonymous_bytes, return_free_memory
from m2chat.integrity import not_verified
from m2chat.models import mapped
from m2chat.models.blank import blank_m2chat, without_cached
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig, NewAdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import set_trainable, trainable_names
from m2chat.models.units import components
from m2chat.planning.host import PROCESS, plan_host
from m2chat.planning.step import BatchShape, blank_batch, blank_noise, measure_step, step_loss

MICRO = Path(__file__).parents[2] / "data" / "micro"


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    """The micro backbones with a language model of 170 MB in half precision, all of it a hole in its file."""
    folder = large_llama(tmp_path_factory.mktemp("large") / "llama", 1024, 5)
    assert (folder / "model.safetensors").stat().st_size > 160e6
    new = NewAdapterConfig(prompts=2, layers=2, visual_blocks=1, visual_heads=2)
    return BackboneConfig(str(folder), "new", str(MICRO / "clip"), str(MICRO / "sdxl"), 8, new_adapter=new)


@pytest.mark.parametrize("settled", [0, 1 << 30], ids=["mapped", "lifted"])
def test_two_steps_on_a_cpu(larger: BackboneConfig, monkeypatch: pytest.MonkeyPatch, settled: int) -> None:
    monkeypatch.setattr(mapped, "SETTLED", settled)
    connector, shape = M3AdapterConfig(width=768, heads=12), BatchShape(1, 64, 32, 8)
    blank, _ = blank_m2chat(larger, connector)
    set_trainable(blank, trainable_names(blank, "align"))
    working = dict.fromkeys(components(blank), measure_step(blank, "align", shape).peak)
    planned = plan_host(blank, True, working, scores=False)
    assert planned.own > 300e6 and (planned.lifted > 300e6) == bool(settled)
    gc.collect()
    return_free_memory()  # what other tests have left would be used again, and not be seen
    before = anonymous()
    with not_verified():  # a checksum reads every byte
        model = build_m2chat(larger, connector)
    set_trainable(model, trainable_names(model, "align"))
    most = anonymous()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    batch = blank_batch(model, shape, "cpu")
    for _ in range(2):
        optimizer.zero_grad()
        step_loss(model, batch, blank_noise(model, batch), "align").backward()
        optimizer.step()
        most = max(most, anonymous())
    assert most - before == pytest.approx(planned.own - PROCESS, rel=0.15)


@pytest.mark.parametrize("cached", [False, True])
def test_what_adds_up(backbone: BackboneConfig, cached: bool) -> None:
    model, _ = blank_m2chat(backbone, M3AdapterConfig(width=48, heads=4))
    whole = numbers(model, trainable_names(model, "m3ft"))
    if cached:
        without_cached(model)
        whole = numbers(model, {name for name, _ in model.named_parameters() if name.startswith("m3adapter.")})
    names = {name for name in trainable_names(model, "align") if name.startswith("m3adapter.")}
    set_trainable(model, names)
    working = {"UNet": 1e6}
    everything = sum(p.numel() for p in model.parameters())
    on_cpu, on_gpu = plan_host(model, True, working), plan_host(model, False, working)
    assert on_cpu.whole == 4 * whole + 12 * numbers(model, names) and on_gpu.whole == 4 * whole
    assert on_cpu.lifted == on_gpu.lifted == 4 * (everything - whole)  # the micro networks are small
    assert on_cpu.working == 1e6 and on_gpu.working == 0 and on_cpu.mapped == 2 * (everything - whole)
    assert plan_host(model, True, working, shared=5e6).own == PROCESS + 5e6
    assert plan_host(model, True, working, copies=2).own >= on_cpu.own


def numbers(model: M2ChatModel, names: set[str]) -> int:
    """How many numbers the parameters of these names hold."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)


def anonymous() -> int:
    """Bytes of memory that this process has to itself."""
    found = anonymous_bytes()
    assert found is not None
    return found
