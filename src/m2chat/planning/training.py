"""Needs of a training run on each GPU."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import nn

from m2chat.errors import UserError
from m2chat.models.reading import ReadingModel
from m2chat.models.trainable import AnyStage
from m2chat.models.units import components, unit_parameters
from m2chat.planning.gpus import Gpu
from m2chat.planning.step import BatchShape, StepMeasure, measure_step

RESERVE = 3_000_000_000
"""Bytes for the CUDA context, NCCL, workspaces and fragmentation: an assumption, not a measurement."""
ADAMW_BYTES = 8
"""Two moments in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU at the worst moment.

    Args:
        weights: Share of the weights.
        gathered: Units that are whole for a while: the rest that is gathered at the start, and two at a time.
        gradients: Share of the gradients, and the whole ones of the unit that is being reduced.
        optimizer: Share of AdamW's moments.
        activations: Activations and temporaries of the GPU's samples.
    """

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, and the reserve."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations + RESERVE


@dataclass(frozen=True)
class Placement:
    """Placement of the weights on the GPUs, and its cost.

    Args:
        memory: Memory of a GPU.
        wire: Bytes that each GPU sends in a step.
    """

    memory: Memory
    wire: float


@dataclass(frozen=True)
class TrainingPlan:
    """The needs of a run.

    Args:
        parameters: Trained and frozen ones of each component.
        forward: Floating-point operations of a sample, by component, at the usual length.
        backward: Floating-point operations of a sample in the backward pass, by component.
        shape: Sizes of a GPU's batch at the greatest length, for which there must be memory.
        usual_tokens: Length for which the work is counted.
        sharded: Placement with the frozen networks sharded.
        whole: Placement with the frozen networks whole on every GPU.
        reads: Bytes of weights that the chip reads in a step.
    """

    parameters: dict[str, tuple[int, int]]
    forward: dict[str, float]
    backward: dict[str, float]
    shape: BatchShape
    usual_tokens: int
    sharded: Placement
    whole: Placement
    reads: float

    @property
    def flops(self) -> float:
        """Floating-point operations of a sample."""
        return sum(self.forward.values()) + sum(self.backward.values())

    def step_seconds(self, gpu: Gpu, layout: Placement, mfu: float = 1.0) -> float:
        """The least time of a step: of work at a share `mfu` of the peak, of reading weights, and of talking."""
        work = self.flops * self.shape.batch / gpu.flops / mfu
        return max(work, self.reads / gpu.memory, layout.wire / gpu.link)

    def gpu_hours(self, gpu: Gpu, layout: Placement, samples: float, mfu: float = 1.0) -> float:
        """GPU-hours of a recipe of so many samples."""
        return samples / self.shape.batch * self.step_seconds(gpu, layout, mfu) / 3600


def plan_training(
    model: ReadingModel,
    stage: AnyStage,
    shape: BatchShape,
    usual_tokens: int,
    devices: int,
    autocast: torch.dtype | None,
    cached: bool = False,
) -> TrainingPlan:
    """Measures a step on the meta device and adds up what each GPU will hold and send.

    Args:
        model: Model on the meta device in the precisions of training, with the stage's parameters set to be trained.
        stage: Training stage.
        shape: Sizes of a GPU's batch at the greatest length.
        usual_tokens: The length at which work is counted.
        devices: Number of GPUs.
        autocast: Precision under autocast; None for none.
        cached: Whether the outputs of the frozen networks come from a feature cache.
    """
    longest = measure_step(model, stage, shape, autocast, cached)
    usual = longest
    if usual_tokens != shape.tokens:
        usual = measure_step(model, stage, replace(shape, tokens=usual_tokens), autocast, cached)
    once = sum(parameter.nbytes for parameter in model.parameters())
    again = sum(parameter.nbytes for unit in longest.backward_units for parameter in unit.parameters())
    return TrainingPlan(
        parameters={name: count_parameters(part) for name, part in components(model).items()},
        forward={name: flops / shape.batch for name, flops in usual.forward.items()},
        backward={name: flops / shape.batch for name, flops in usual.backward.items()},
        shape=shape,
        usual_tokens=usual_tokens,
        sharded=lay_out(model, longest, devices, shard_frozen=True),
        whole=lay_out(model, longest, devices, shard_frozen=False),
        reads=once + again,
    )


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """How many parameters of a module are trained, and how many frozen."""
    counts = [0, 0]
    for parameter in module.parameters():
        counts[not parameter.requires_grad] += parameter.numel()
    return counts[0], counts[1]


def lay_out(model: ReadingModel, measure: StepMeasure, devices: int, shard_frozen: bool) -> Placement:
    """Memory and traffic of a GPU under FSDP2.

    Every unit is gathered for the forward pass, and again for the backward pass if a gradient passes through it; what
    is in no unit is gathered once and stays. Gradients are sharded by reduce-scatter.
    """
    units = unit_parameters(model)
    groups = list(units.values())
    within = {parameter for group in groups for parameter in group}
    rest = [parameter for parameter in model.parameters() if parameter not in within]

    def sharded(parameters: Collection[nn.Parameter]) -> int:
        return sum(p.nbytes for p in parameters if shard_frozen or p.requires_grad)

    def trained(parameters: Collection[nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad)

    everything = list(model.parameters())
    alone = sum(p.nbytes for p in everything) - sharded(everything)
    share, count = sharded(everything), trained(everything)
    memory = Memory(
        weights=alone + share / devices,
        gathered=0 if devices == 1 else sharded(rest) + sum(sorted(map(sharded, groups))[-2:]),
        gradients=4 * count / devices + (0 if devices == 1 else 4 * max(map(trained, [*groups, rest]))),
        optimizer=ADAMW_BYTES * count / devices,
        activations=measure.peak,
    )
    gathers = sharded(rest) + sum(
        sharded(group) * (1 + (unit in measure.backward_units)) for unit, group in zip(units, groups, strict=True)
    )
    return Placement(memory, wire=(gathers + 4 * count) * (devices - 1) / devices)


def largest_batch(
    model: ReadingModel,
    stage: AnyStage,
    shape: BatchShape,
    devices: int,
    autocast: torch.dtype | None,
    limit: float,
    shard_frozen: bool,
    cached: bool = False,
) -> int:
    """The most samples of a GPU that fit.

    Memory is a fixed part and one that grows with the batch; two small batches give both.

    Args:
        model: Model as in `plan_training`.
        stage: Training stage.
        shape: Sizes of a batch; the number of samples is ignored.
        devices: Number of GPUs.
        autocast: Precision under autocast; None for none.
        limit: Bytes of a GPU.
        shard_frozen: Whether the frozen networks are sharded.
        cached: Whether the outputs of the frozen networks come from a feature cache.

    Raises:
        UserError: If not even one sample fits.
    """
    need = []
    for batch in (1, 2):
        measure = measure_step(model, stage, replace(shape, batch=batch), autocast, cached)
        need.append(lay_out(model, measure, devices, shard_frozen).memory.total)
    if need[0] > limit:
        raise UserError(
            f"--micro-batch auto: one sample needs {need[0] / 1e9:.1f} GB of a GPU, and --memory is "
            f"{limit / 1e9:g} GB: take more --devices, a smaller data.image_size or data.max_tokens, or "
            "model.init_args.gradient_checkpointing"
        )
    return 1 + int((limit - need[0]) // max(1.0, need[1] - need[0]))
