"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from lightning import Trainer
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from m2chat.errors import UserError
from m2chat.training.config import OptimConfig

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_PLAIN_NAMES = frozenset({"bias", "in_proj_bias", "gate", "adapter_gate", "adapter_new_gate"})


class ParameterGroup(TypedDict):
    """Parameters that share a weight decay."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float


def parameter_groups(module: nn.Module, weight_decay: float, gates_apart: bool = False) -> list[ParameterGroup]:
    """Trained parameters, with weight decay on all but biases, norms and gates.

    A norm or gate is known by its module's type (torch's norms, or a class whose name ends in Norm or Gate), a bias
    or gate by the last part of its name; ``gate_proj.weight`` is neither.

    Args:
        module: Module whose parameters that require gradients are grouped.
        weight_decay: Weight decay of the group that has one, 0 or more.
        gates_apart: Whether the gates of LLaMA-Adapter's prompts are a separate group.

    Returns:
        The groups ``decay`` and ``no_decay``, and ``gates`` if they are apart, in the module's order; none is empty.
    """
    decay: dict[nn.Parameter, None] = {}
    plain: dict[nn.Parameter, None] = {}
    gates: dict[nn.Parameter, None] = {}
    for owner in module.modules():
        spared = isinstance(owner, _NORMS) or type(owner).__name__.endswith(("Norm", "Gate"))
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_plain, is_apart = spared or name in _PLAIN_NAMES, gates_apart and name == "adapter_gate"
                (gates if is_apart else plain if is_plain else decay)[parameter] = None
    groups: list[ParameterGroup] = [
        {"name": "decay", "params": [p for p in decay if p not in plain], "weight_decay": weight_decay},
        {"name": "no_decay", "params": list(plain), "weight_decay": 0.0},
        {"name": "gates", "params": list(gates), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class RatedGroup(ParameterGroup):
    """Parameters that also share a learning rate."""

    lr: float


def rated_groups(
    parts: Mapping[str, tuple[nn.Module, float]], weight_decay: float, lr_gates: float | None = None
) -> list[RatedGroup]:
    """`parameter_groups` of several modules, each with its learning rate.

    Args:
        parts: Name to module and peak learning rate. A parameter belongs to the first part that has it.
        weight_decay: Weight decay of the groups that have one.
        lr_gates: Peak learning rate of the gates of LLaMA-Adapter's prompts; None for that of their part.
    """
    groups: list[RatedGroup] = []
    taken: set[nn.Parameter] = set()
    for name, (module, lr) in parts.items():
        for group in parameter_groups(module, weight_decay, gates_apart=lr_gates is not None and lr > 0):
            params = [parameter for parameter in group["params"] if parameter not in taken]
            rate = lr if lr_gates is None or group["name"] != "gates" else lr_gates
            if params:
                groups.append({**group, "name": f"{name}/{group['name']}", "params": params, "lr": rate})
            taken.update(params)
    return groups


def language_parts(llama: Any, config: OptimConfig, rate: float) -> dict[str, tuple[nn.Module, float]]:
    """Parts of the language model with their peak learning rates, for `rated_groups`.

    The tensors of frozen layers are among them, with a rate of 0: so they stay in the checkpoints of their stage.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        config: Number of frozen layers.
        rate: Peak learning rate of the others.

    Raises:
        UserError: If it has fewer layers.
    """
    if not config.frozen_layers:
        return {"llama": (llama, rate)}
    if config.frozen_layers > len(llama.model.layers):
        raise UserError(
            f"optim.frozen_layers={config.frozen_layers}: this language model has {len(llama.model.layers)} layers"
        )
    return {"llama/frozen": (llama.model.layers[: config.frozen_layers], 0.0), "llama": (llama, rate)}


def adamw(groups: Any, config: OptimConfig, precision: str) -> AdamW:
    """AdamW, fused where the configuration or the device wants it.

    Args:
        groups: Groups of parameters, as of `rated_groups`.
        config: Coefficients, and whether it is fused.
        precision: The trainer's.
    """
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices == {"cuda"} if config.fused is None else config.fused
    optimizer: Any = AdamW(groups, betas=config.betas, fused=fused or None)
    if fused and precision != "16-mixed":
        # Lightning does not clip gradients that an optimiser may have to unscale; only fp16 has a scale.
        optimizer._step_supports_amp_scaling = False
    return optimizer  # type: ignore[no-any-return]


def schedule_of(optimizer: Optimizer, config: OptimConfig, trainer: Trainer) -> LambdaLR:
    """The configured schedule, over the steps of a training."""
    if config.schedule == "cosine":
        total = int(trainer.estimated_stepping_batches)
        return cosine_schedule(optimizer, min(config.warmup_steps, max(0, total - 1)), total)
    epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return step_schedule(optimizer, config.warmup_steps, config.drop_every_epochs * epoch)


def cosine_schedule(optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine.

    Args:
        optimizer: Optimiser, whose learning rates are the peak.
        warmup_steps: Optimiser steps of warm-up; the first of them already has a rate above 0.
        total_steps: Optimiser steps until the floor is reached; it stays there.
        floor: Share of the peak at the end, 0-1.
    """
    if total_steps <= warmup_steps:
        raise ValueError(f"total_steps ({total_steps}) must be greater than warmup_steps ({warmup_steps})")

    def after(step: int) -> float:
        progress = min(1.0, step / (total_steps - warmup_steps))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, _with_warmup(warmup_steps, after))


def step_schedule(optimizer: Optimizer, warmup_steps: int, drop_every: int, factor: float = 0.1) -> LambdaLR:
    """Linear warm-up, then the peak, multiplied by a factor at regular steps.

    Args:
        optimizer: Optimiser, whose learning rates are the peak.
        warmup_steps: Optimiser steps of warm-up.
        drop_every: Optimiser steps from drop to drop, counted from the first step of training: epochs between drops
            times optimiser steps in an epoch.
        factor: Factor of the learning rate at each drop.
    """
    if drop_every < 1:
        raise ValueError(f"drop_every must be at least 1 step, not {drop_every}")
    return LambdaLR(optimizer, _with_warmup(warmup_steps, lambda step: factor ** ((step + warmup_steps) // drop_every)))


def _with_warmup(warmup_steps: int, after: Callable[[int], float]) -> Callable[[int], float]:
    """A rate that rises to 1 over the first steps and then follows `after`, which counts from the end of them."""
    return lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else after(step - warmup_steps)
