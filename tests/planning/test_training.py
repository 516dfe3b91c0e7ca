"""Plans at the paper's scale, on the meta device, beside figures that were counted by other means."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2chat.models.blank import blank_m2chat, blank_reading, without_cached
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig, NewAdapterConfig
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.memory import lower_parameters
from m2chat.models.trainable import adapter_names, set_trainable, trainable_names
from m2chat.models.units import components, shard_units, unit_parameters
from m2chat.planning.gpus import GPUS, gpu_named
from m2chat.planning.meter import Meter
from m2chat.planning.step import BatchShape, StepMeasure, blank_batch, blank_noise, measure_step, step_loss
from m2chat.planning.training import RESERVE, count_parameters, largest_batch, lay_out, plan_training

NOWHERE = BackboneConfig("none/llama", "none/BIAS-7B.pth", "ViT-L-14-quickgelu:openai", "none/sdxl", 32, "bgr")
TF = 1e12


@pytest.fixture(scope="module")
def paper() -> M2ChatModel:
    model, assumed = blank_m2chat(NOWHERE, M3AdapterConfig(1536, 24))
    assert len(assumed) == 3 and all("taken to be" in line for line in assumed)
    return model


@pytest.fixture(scope="module")
def steps(paper: M2ChatModel) -> dict[str, StepMeasure]:
    """A step of each stage, of one sample, at 96 and at 256 tokens, 256 pixels, as under bf16-mixed."""
    found = {}
    for stage, tokens in (("align", 96), ("m3ft", 256)):
        set_trainable(paper, trainable_names(paper, stage))  # type: ignore[arg-type]
        for trained, dtype in ((False, torch.bfloat16), (True, torch.float32)):
            lower_parameters((p for p in paper.parameters() if p.requires_grad == trained), dtype)
        found[stage] = measure_step(paper, stage, BatchShape(1, tokens, 256, 32), torch.bfloat16)  # type: ignore[arg-type]
    return found


def test_the_published_networks_have_their_published_numbers(paper: M2ChatModel) -> None:
    counts = {name: sum(count_parameters(part)) for name, part in components(paper).items()}
    tables = 2 * 2 * 4096  # the two tokens' rows
    added = 63_095_552 - counts["visual query"] - 266_240  # of BIAS-7B; its norms are LLaMA's own
    assert counts["language model"] == 6_738_149_376 + 266_240 + added + tables
    assert counts["UNet"] == 2_567_463_684
    assert counts["vision encoder"] == 303_966_208
    assert counts["text encoder 1"] + counts["text encoder 2"] == pytest.approx((123.1 + 694.7) * 1e6, rel=1e-3)
    assert counts["VAE"] == pytest.approx((34.2 + 49.5) * 1e6, rel=2e-3)
    assert counts["M³Adapter"] <= 90_000_000
    assert sum(counts.values()) == sum(parameter.numel() for parameter in paper.parameters())


def prompts(paper: M2ChatModel) -> float:
    """Work of the adapter's prompts, which a plain LLaMA has not: keys and values of ten in 31 layers."""
    return 31 * 2 * 2 * 10 * 4096**2


def test_the_work_of_each_component_is_that_of_the_plain_networks(
    paper: M2ChatModel, steps: dict[str, StepMeasure]
) -> None:
    align, m3ft = steps["align"], steps["m3ft"]
    near = {"rel": 0.01}
    assert align.forward["language model"] - prompts(paper) == pytest.approx(1.248 * TF, **near)
    head = 0.262e9 * 64  # a quarter of the positions is scored
    assert m3ft.forward["language model"] - prompts(paper) - head == pytest.approx(3.350 * TF, **near)
    for measure in (align, m3ft):
        assert measure.forward["UNet"] == pytest.approx(0.428 * TF, **near)
        assert measure.backward["UNet"] == pytest.approx(0.431 * TF, **near)  # to the condition, not to the weights
        assert measure.forward["VAE"] == pytest.approx(0.273 * TF, **near)
        assert measure.forward["vision encoder"] == pytest.approx(0.162 * TF, **near)
        text = measure.forward["text encoder 1"], measure.forward["text encoder 2"]
        assert text == (pytest.approx(0.0133 * TF, **near), pytest.approx(0.0979 * TF, **near))
    assert align.backward["language model"] == 0
    assert m3ft.backward["language model"] > 3.384 * TF
    assert align.backward["M³Adapter"] == pytest.approx(2 * align.forward["M³Adapter"], rel=0.2)


def test_the_saved_activations_are_of_the_known_size(steps: dict[str, StepMeasure]) -> None:
    # 339 MiB of the UNet alone in pure bf16; autocast keeps the norms' inputs in fp32.
    assert 339 * 2**20 < steps["align"].peak < 2 * 339 * 2**20


def test_a_cached_step_is_that_of_unet_and_connector(paper: M2ChatModel, steps: dict[str, StepMeasure]) -> None:
    cached = deepcopy(paper)
    without_cached(cached)  # a network that is not there refuses to be called
    set_trainable(cached, trainable_names(cached, "align"))
    for trained, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        lower_parameters((p for p in cached.parameters() if p.requires_grad == trained), dtype)
    step = measure_step(cached, "align", BatchShape(1, 96, 256, 32), torch.bfloat16, cached=True)
    assert step.flops == pytest.approx(0.881 * TF, rel=0.01)
    assert step.forward["UNet"] == steps["align"].forward["UNet"]
    assert {name for name, flops in step.forward.items() if flops} == {"UNet", "M³Adapter"}
    # The UNet's activations are the same; those of the networks that are not there were never kept.
    assert step.peak == pytest.approx(steps["align"].peak, rel=0.01)
    assert not any(p.requires_grad or p.grad is not None for p in cached.decoder.unet.parameters())
    whole, kept = (sum(p.nbytes for p in model.parameters()) for model in (paper, cached))
    needed = sum(p.nbytes for part in (cached.decoder.unet, cached.m3adapter) for p in part.parameters())
    assert kept <= needed + 0.15 * whole


def test_units_of_the_backward_pass(paper: M2ChatModel, steps: dict[str, StepMeasure]) -> None:
    inside = set(paper.decoder.unet.modules())
    unet = {unit for unit in shard_units(paper) if unit in inside}
    assert len(unet) == 70 + 7  # transformer blocks and stages of SDXL
    stage1 = unet | set(paper.m3adapter.text_blocks)
    assert steps["align"].backward_units == stage1
    assert steps["m3ft"].backward_units == stage1 | set(paper.m3adapter.image_blocks) | set(paper.llama.model.layers)


def test_memory_and_traffic_add_up(paper: M2ChatModel, steps: dict[str, StepMeasure]) -> None:
    measure, everything = steps["m3ft"], sum(parameter.nbytes for parameter in paper.parameters())
    trained = sum(parameter.numel() for parameter in paper.parameters() if parameter.requires_grad)
    sharded, whole = (lay_out(paper, measure, 8, shard_frozen) for shard_frozen in (True, False))
    assert sharded.memory.weights == everything / 8
    assert sharded.memory.optimizer == trained
    assert whole.memory.weights == everything - 7 / 8 * 4 * trained
    assert whole.wire < sharded.wire / 10
    units = unit_parameters(paper)
    again = sum(parameter.nbytes for unit in measure.backward_units for parameter in units[unit])
    assert sharded.wire == pytest.approx((everything + again + 4 * trained) * 7 / 8)
    alone = lay_out(paper, measure, 1, True)
    assert alone.wire == alone.memory.gathered == 0 and alone.memory.total > everything + 12 * trained + RESERVE


def test_the_plan_of_the_micro_model_is_what_it_does(backbone: BackboneConfig) -> None:
    """The same counters on real tensors: meta tensors make no difference to the work, nor much to memory."""
    config = M3AdapterConfig(width=48, heads=4)
    blank, assumed = blank_m2chat(backbone, config)
    real = build_m2chat(backbone, config)
    assert assumed == []
    names = {name: parameter.shape for name, parameter in real.named_parameters()}
    assert {name: parameter.shape for name, parameter in blank.named_parameters()} == names
    set_trainable(blank, trainable_names(blank, "m3ft"))
    set_trainable(real, trainable_names(real, "m3ft"))
    shape = BatchShape(2, 64, 32, 8)
    batch = blank_batch(real, shape, "cpu")
    inputs = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    with Meter([*real.parameters(), *real.buffers(), *inputs]) as live:
        step_loss(real, batch, blank_noise(real, batch), "m3ft").backward()
    assert measure_step(blank, "m3ft", shape).peak == pytest.approx(live.peak, rel=0.05)


def test_the_largest_batch_fits_and_one_more_does_not(backbone: BackboneConfig) -> None:
    model, _ = blank_m2chat(backbone, M3AdapterConfig(width=48, heads=4))
    set_trainable(model, trainable_names(model, "align"))
    shape, limit = BatchShape(0, 64, 32, 8), RESERVE + 200e6
    best = largest_batch(model, "align", shape, 2, None, limit, shard_frozen=True)
    assert best > 2
    for batch, fits in ((best, True), (best + max(2, best // 20), False)):
        plan = plan_training(model, "align", replace(shape, batch=batch), 64, 2, None)
        assert (plan.sharded.memory.total <= limit) == fits


def test_times_follow_the_narrowest_place(backbone: BackboneConfig) -> None:
    model, _ = blank_m2chat(backbone, M3AdapterConfig(width=48, heads=4))
    set_trainable(model, trainable_names(model, "align"))
    plan = plan_training(model, "align", BatchShape(2, 64, 32, 8), 48, 2, None)
    gpu = GPUS["h100"]
    slow = replace(gpu, flops=1e9)
    assert plan.step_seconds(slow, plan.whole) == plan.flops * 2 / 1e9
    assert plan.step_seconds(slow, plan.whole, mfu=0.5) == 2 * plan.step_seconds(slow, plan.whole)
    assert plan.step_seconds(replace(gpu, link=1.0), plan.whole) == plan.whole.wire
    assert plan.gpu_hours(slow, plan.whole, 7200) == pytest.approx(plan.step_seconds(slow, plan.whole))
    assert len(list(shard_units(model))) > 10 and gpu_named("h200") == GPUS["h200"]
    assert Path(backbone.language_model).is_dir()


def test_stage_0_is_planned_without_image_decoder() -> None:
    new = NewAdapterConfig(prompts=10, layers=31, visual_blocks=8, visual_heads=16)
    model, assumed = blank_reading(replace(NOWHERE, adapter="new", new_adapter=new))
    assert len(assumed) == 1 and "LLaMA 7B" in assumed[0]
    set_trainable(model, adapter_names(model))
    lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
    plan = plan_training(model, "describe", BatchShape(2, 96, 256, 32), 96, 8, torch.bfloat16)
    assert set(plan.parameters) == {"language model", "vision encoder", "visual query"}
    assert sum(trained for trained, _ in plan.parameters.values()) == 63_095_552
    # The gradient passes through every layer and its frozen weights get none: twice the forward pass at most.
    language = plan.forward["language model"]
    assert 0.9 < plan.backward["language model"] / language < 1.2 and language > 2 * 6.6e9 * 96
    assert plan.sharded.memory.total < plan.whole.memory.total
