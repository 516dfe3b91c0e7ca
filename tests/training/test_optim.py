from __future__ import annotations

import pytest
import torch
from torch import nn

from m2chat.errors import UserError
from m2chat.training.config import OptimConfig
from m2chat.training.optim import cosine_schedule, language_parts, parameter_groups, rated_groups, step_schedule


class AnyRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class FusionGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(2, 2)
        self.norm_like = nn.Linear(2, 2, bias=False)
        self.norm = AnyRMSNorm()
        self.layer_norm = nn.LayerNorm(2)
        self.fusion = FusionGate()
        self.gate = nn.Parameter(torch.zeros(1, 2))
        self.bias_table = nn.Parameter(torch.zeros(2, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_spares_biases_norms_and_gates_only() -> None:
    module = Toy()
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = {g["name"]: {names[p] for p in g["params"]} for g in parameter_groups(module, 0.05)}
    assert groups["decay"] == {"gate_proj.weight", "norm_like.weight", "bias_table"}
    assert groups["no_decay"] == {
        "gate_proj.bias", "norm.weight", "layer_norm.weight", "layer_norm.bias", "fusion.slope", "gate",
    }  # fmt: skip
    assert {g["name"]: g["weight_decay"] for g in parameter_groups(module, 0.05)} == {"decay": 0.05, "no_decay": 0.0}


def test_gates_can_have_a_separate_learning_rate() -> None:
    layer = nn.Module()
    layer.adapter_gate, layer.proj = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2)  # type: ignore[assignment]
    layer.norm = AnyRMSNorm()
    parts: dict[str, tuple[nn.Module, float]] = {"llama": (layer, 1e-3), "visual": (nn.Linear(2, 2), 5e-4)}
    names = {p: name for part, (module, _) in parts.items() for name, p in module.named_parameters(prefix=part)}
    groups = {g["name"]: ({names[p] for p in g["params"]}, g["lr"]) for g in rated_groups(parts, 0.1, 8e-3)}
    assert groups["llama/gates"] == ({"llama.adapter_gate"}, 8e-3)
    assert groups["llama/no_decay"] == ({"llama.proj.bias", "llama.norm.weight"}, 1e-3)
    assert {name for name, (_, lr) in groups.items() if lr == 5e-4} == {"visual/decay", "visual/no_decay"}
    together = {g["name"]: {names[p] for p in g["params"]} for g in rated_groups(parts, 0.1)}
    assert "llama.adapter_gate" in together["llama/no_decay"] and "llama/gates" not in together


def test_the_first_layers_can_keep_their_values() -> None:
    llama = nn.Module()
    llama.model = nn.Module()
    llama.model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    llama.head = nn.Linear(2, 2)
    names = {parameter: name for name, parameter in llama.named_parameters()}
    parts = language_parts(llama, OptimConfig(frozen_layers=2), 1e-3)
    rate = {names[p]: group["lr"] for group in rated_groups(parts, 0.1, 8e-3) for p in group["params"]}
    assert rate == {
        name: 0.0 if name.startswith(("model.layers.0", "model.layers.1")) else 1e-3 for name in names.values()
    }
    assert sum(len(group["params"]) for group in rated_groups(parts, 0.1)) == len(names), "each of them once"
    assert language_parts(llama, OptimConfig(), 1e-3) == {"llama": (llama, 1e-3)}
    with pytest.raises(UserError, match=r"optim\.frozen_layers=4: this language model has 3 layers"):
        language_parts(llama, OptimConfig(frozen_layers=4), 1e-3)


def test_a_shared_parameter_is_taken_once() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    (group,) = parameter_groups(module, 0.1)
    assert len(group["params"]) == 1


def rates(build: object, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build(optimizer)  # type: ignore[operator]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine() -> None:
    seen = rates(lambda o: cosine_schedule(o, warmup_steps=3, total_steps=11, floor=0.1), 14)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert seen[7] == pytest.approx(1.1)
    assert seen[11:] == pytest.approx([0.2] * 3)
    with pytest.raises(ValueError, match=r"total_steps \(3\)"):
        rates(lambda o: cosine_schedule(o, 3, 3), 1)


def test_steps() -> None:
    seen = rates(lambda o: step_schedule(o, warmup_steps=1, drop_every=3), 9)
    assert seen == pytest.approx([1.0, 2.0, 2.0, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02])
    with pytest.raises(ValueError, match="drop_every"):
        rates(lambda o: step_schedule(o, 0, 0), 1)


def test_rates_of_the_language_side_follow_from_what_is_given() -> None:
    assert OptimConfig(lr=1.0).language_rates() == (1.0, 1.0)
    assert OptimConfig(lr=1.0, lr_language=2.0).language_rates() == (2.0, 2.0)
    assert OptimConfig(lr=1.0, lr_language=2.0, lr_visual=3.0).language_rates() == (2.0, 3.0)
