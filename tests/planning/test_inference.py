"""What generation needs at the paper's scale."""

from __future__ import annotations

import pytest
import torch

from m2chat.models.blank import blank_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.memory import lower_parameters
from m2chat.planning.inference import InferencePlan, plan_inference


@pytest.fixture(scope="module")
def plan() -> InferencePlan:
    nowhere = BackboneConfig("none/llama", "none/BIAS-7B.pth", "ViT-L-14-quickgelu:openai", "none/sdxl", 32, "bgr")
    model, _ = blank_m2chat(nowhere, M3AdapterConfig(1536, 24))
    lower_parameters(model.requires_grad_(False).parameters(), torch.bfloat16)
    return plan_inference(model, 512, 1024)


def test_the_work_of_a_picture(plan: InferencePlan) -> None:
    assert plan.step.flops == pytest.approx(2 * 6.761e12, rel=0.01)
    assert plan.decode.flops == pytest.approx(10.47e12, rel=0.01)


def test_each_mode_needs_less(plan: InferencePlan) -> None:
    assert plan.needs["low"] < plan.needs["balanced"] < plan.needs["high"]
    assert plan.weights["high"] == pytest.approx(21.3e9, rel=0.01)
    assert plan.weights["high"] - plan.weights["balanced"] == pytest.approx(6.48e9, rel=0.01)
    assert plan.needs["high"] < 26e9 and plan.needs["low"] < 11e9
    assert plan.cache == 2 * 32 * 4096 * 2 * 512
