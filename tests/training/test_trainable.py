"""What each stage trains, by exact name, and that nothing else ever moves; the numbers are the micro backbones'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.models.build import build_m2chat
from m2chat.models.config import GateConfig, GateMode, M3AdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.trainable import Stage, set_trainable, trainable_names
from m2chat.models.weights.adapter import open_adapter

LAYERS, WITH_PROMPTS, VISUAL_BLOCKS, BLOCKS = range(4), range(1, 4), range(2), range(2)
"""The first layer has a gate, as the official file does, but no prompts that it could open to."""
IDLE = {"llama.model.layers.0.self_attn.adapter_gate"}


def linear(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def cross_blocks(branch: str) -> set[str]:
    names: set[str] = set()
    for n in BLOCKS:
        block = f"m3adapter.{branch}.{n}"
        parts = ("norm_query", "to_q", "to_v", "to_out", "norm_out", "feed_forward.0", "feed_forward.2")
        names |= {f"{block}.to_k.weight"} | linear(*(f"{block}.{part}" for part in parts))
    return names


HEADS = linear(
    "m3adapter.head.0", "m3adapter.head.2", "m3adapter.pooled_head.0", "m3adapter.pooled_head.2",
    "m3adapter.norm_states", "m3adapter.norm_fused",
)  # fmt: skip
TEXT_BRANCH = {"m3adapter.queries"} | cross_blocks("text_blocks") | HEADS
IMAGE_BRANCH = cross_blocks("image_blocks") | linear("m3adapter.norm_picture")
GATE = {"m3adapter.gate.slope", "m3adapter.gate.bias"}
LLAMA = (
    {f"llama.model.layers.{n}.self_attn.{part}" for n in LAYERS for part in ("q_proj.bias", "o_proj.bias")}
    | {f"llama.model.layers.{n}.mlp.{part}_proj.bias" for n in LAYERS for part in ("gate", "up", "down")}
    | {f"llama.model.layers.{n}.input_layernorm.weight" for n in LAYERS}
    | {f"llama.model.layers.{n}.post_attention_layernorm.weight" for n in LAYERS}
    | {f"llama.model.layers.{n}.self_attn.adapter_gate" for n in LAYERS}
    | {f"llama.model.layers.{n}.self_attn.adapter_query" for n in WITH_PROMPTS}
    | {"llama.model.norm.weight"}
)  # fmt: skip
VISUAL_QUERY = (
    {"visual_query.visual_query.weight"}
    | linear(*(f"visual_query.{part}" for part in ("clip_proj", "clip_proj_norm", "visual_proj", "visual_proj_norm")))
    | linear(
        *(
            f"visual_query.visual_blocks.{n}.{part}"
            for n in VISUAL_BLOCKS
            for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        )
    )
)
TOKENS = {"llama.model.embed_tokens.extra", "llama.lm_head.extra"}
STAGE_2 = TEXT_BRANCH | LLAMA | VISUAL_QUERY | TOKENS


@pytest.fixture(scope="module")
def models(micro: Any) -> dict[GateMode, M2ChatModel]:
    """The micro model with the M³Adapter's micro numbers, in each mode of the gate."""
    modes: tuple[GateMode, ...] = ("learnable", "paper", "constant", "off")
    configs = {mode: M3AdapterConfig(width=192, heads=6, blocks=2, gate=GateConfig(mode)) for mode in modes}
    return {mode: build_m2chat(micro.backbone(), config) for mode, config in configs.items()}


def numbers(model: M2ChatModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("stage", "mode", "names", "count"),
    [
        ("align", "learnable", TEXT_BRANCH, 504_128),
        ("align", "off", TEXT_BRANCH, 504_128),
        ("m3ft", "learnable", STAGE_2 | IMAGE_BRANCH | GATE, 1_133_042),
        ("m3ft", "paper", STAGE_2 | IMAGE_BRANCH, 1_133_040),
        ("m3ft", "constant", STAGE_2 | IMAGE_BRANCH, 1_133_040),
        ("m3ft", "off", STAGE_2, 760_752),
    ],
)
def test_exactly_these_tensors_are_trained(
    models: dict[GateMode, M2ChatModel], stage: Stage, mode: GateMode, names: set[str], count: int
) -> None:
    model = models[mode]
    assert trainable_names(model, stage) == names
    set_trainable(model, names)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names
    assert numbers(model) == count


def test_stage_2_trains_what_the_adapter_file_holds(micro: Any, models: dict[GateMode, M2ChatModel]) -> None:
    parameters = dict(models["paper"].named_parameters())
    held = open_adapter(Path(micro.backbone().adapter), "adapter").state
    assert sum(parameters[name].numel() for name in LLAMA | VISUAL_QUERY) == sum(t.numel() for t in held.values())


def state_of(model: M2ChatModel) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stage", "trained"), [("align", TEXT_BRANCH), ("m3ft", STAGE_2 | IMAGE_BRANCH | GATE)])
def test_five_steps_move_the_trained_tensors_and_nothing_else(
    micro: Any, tmp_path: Path, stage: Stage, trained: set[str]
) -> None:
    fresh = micro.module(stage)
    fresh.configure_model()
    before = state_of(fresh.model)
    run = micro.fit(stage, tmp_path, 5)
    after = state_of(run.module.model)
    assert len(run.losses) == 5
    assert before.keys() == after.keys() and len(before) > 700
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == trained - IDLE
