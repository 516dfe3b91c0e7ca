from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.config import GATE_MODES, GateConfig, GateMode
from m2chat.models.gate import Gate, masked_mean

TRUE = torch.tensor([True])


def states_with_cosine(cosine: float) -> tuple[Tensor, Tensor, Tensor]:
    """One sample whose answer (two tokens) and caption (one) have mean states at a given angle."""
    caption = torch.tensor([1.0, 0.0, 0.0])
    answer = torch.tensor([cosine, (1 - cosine**2) ** 0.5, 0.0])
    states = torch.stack([torch.full((3,), 9.0), 2 * answer + 1, 2 * answer - 1, 5 * caption])[None]
    return states, torch.tensor([[False, True, True, False]]), torch.tensor([[False, False, False, True]])


def gate_at(gate: Gate, cosine: float, has_context: Tensor = TRUE) -> float:
    value, seen = gate(*states_with_cosine(cosine), has_context)
    assert seen.item() == pytest.approx(cosine, abs=1e-6)
    return value.item()


@pytest.mark.parametrize("cosine", [-0.8, 0.0, 0.3, 1.0])
def test_modes(cosine: float) -> None:
    assert gate_at(Gate(GateConfig("paper")), cosine) == pytest.approx(max(cosine, 0.0), abs=1e-6)
    assert gate_at(Gate(GateConfig("constant")), cosine) == 0.5
    assert gate_at(Gate(GateConfig("constant", 0.2)), cosine) == pytest.approx(0.2)
    assert gate_at(Gate(GateConfig("off")), cosine) == 1.0
    learned = Gate(GateConfig("learnable"))
    with torch.no_grad():
        learned.slope.fill_(2.0)
        learned.bias.fill_(-1.0)
    assert gate_at(learned, cosine) == pytest.approx(1 / (1 + torch.tensor(1 - 2 * cosine).exp().item()), abs=1e-6)


def test_learnable_starts_as_the_paper() -> None:
    gate = Gate(GateConfig("learnable"))
    distance = [abs(gate_at(gate, float(c)) - float(c)) for c in torch.linspace(0.1, 0.9, 81)]
    assert max(distance) <= 0.05


@pytest.mark.parametrize("mode", GATE_MODES)
def test_without_answer_or_context_semantics_rule(mode: GateMode) -> None:
    gate = Gate(GateConfig(mode, 0.3))
    states, answer, caption = states_with_cosine(0.4)
    batch = states.repeat(3, 1, 1)
    answers = torch.cat([answer, torch.zeros_like(answer), answer])
    value, cosine = gate(batch, answers, caption.repeat(3, 1), torch.tensor([False, True, True]))
    assert value[:2].tolist() == [1.0, 1.0] and value.dtype == torch.float32 and cosine.isfinite().all()
    assert value[2].item() == (1.0 if mode == "off" else pytest.approx(gate_at(gate, 0.4)))


def test_low_precision_states_are_compared_in_full_precision() -> None:
    states, answer, caption = states_with_cosine(0.4)
    value, cosine = Gate(GateConfig("learnable"))(states.bfloat16(), answer, caption, TRUE)
    assert value.dtype == cosine.dtype == torch.float32 and cosine.item() == pytest.approx(0.4, abs=0.02)


def test_gradients_reach_slope_and_bias_but_not_the_states() -> None:
    gate = Gate(GateConfig("learnable"))
    states, answer, caption = states_with_cosine(0.4)
    states.requires_grad_()
    value, _ = gate(states, answer, caption, TRUE)
    value.sum().backward()
    slope, bias = gate.slope.grad, gate.bias.grad
    assert slope is not None and bias is not None and slope.item() == pytest.approx(0.4 * bias.item()) != 0
    assert states.grad is None
    assert all(p.ndim == 1 for p in gate.parameters()), "sharding refuses parameters without a dimension"


@pytest.mark.parametrize("mode", ["paper", "constant", "off"])
def test_other_modes_have_nothing_to_learn(mode: GateMode) -> None:
    assert not any(p.requires_grad for p in Gate(GateConfig(mode)).parameters())


def test_masked_mean() -> None:
    states = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(states, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


def test_wrong_settings_name_the_choices() -> None:
    with pytest.raises(UserError, match=r"gate\.mode='on': choose one of paper, learnable, constant, off"):
        GateConfig("on")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gate\.value=1\.5"):
        GateConfig("constant", 1.5)
