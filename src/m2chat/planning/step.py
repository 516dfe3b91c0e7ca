"""One training step of the real model on blank inputs, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.batch import Batch, FrozenFeatures
from m2chat.losses import align_loss, ddpm_loss, text_loss
from m2chat.models.absent import Absent
from m2chat.models.m2chat import DiffusionNoise, M2ChatModel
from m2chat.models.reading import ReadingModel
from m2chat.models.trainable import AnyStage, Stage
from m2chat.models.units import components, shard_units
from m2chat.planning.meter import Meter
from m2chat.planning.rules import GpuRules


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch.

    Args:
        batch: B, samples.
        tokens: T, length of the sequences.
        image_size: Side of the pictures to draw, in pixels.
        image_tokens: N.
    """

    batch: int
    tokens: int
    image_size: int
    image_tokens: int


def blank_batch(model: ReadingModel, shape: BatchShape, device: torch.device | str = "meta") -> Batch:
    """A batch of the right shapes: context picture, answer and caption in every sample, a quarter of it scored.

    Args:
        model: Model whose sizes the batch follows.
        shape: Sizes of the batch.
        device: Device of the tensors.
    """
    count, tokens = shape.batch, shape.tokens
    queries = model.decoder.queries if isinstance(model, M2ChatModel) else 1  # stage 0 has no text encoders
    side = 0 if isinstance(model.clip, Absent) else model.clip.visual.image_size  # no picture is looked at
    side = side[0] if isinstance(side, tuple) else side
    position = torch.arange(tokens).expand(count, -1)
    end, text = tokens - shape.image_tokens, max(1, (tokens - shape.image_tokens) // 4)
    labels = torch.full((count, tokens), -100)
    labels[:, tokens - max(1, tokens // 4) :] = 5
    yes = torch.ones(count, dtype=torch.bool)
    size = float(shape.image_size)
    # Small tensors are made on the CPU, where it is found out what stands where in the batch.
    return Batch(
        input_ids=torch.randint(3, int(model.llama.config.vocab_size), (count, tokens)),
        attention_mask=torch.ones(count, tokens, dtype=torch.bool),
        labels=labels,
        answer_mask=(position >= end - 2 * text) & (position < end - text),
        caption_mask=(position >= end - text) & (position < end),
        image_mask=position >= end,
        context_pixels=torch.randn(count, 3, side, side, device=device),
        has_context=yes,
        target_pixels=torch.randn(count, 3, shape.image_size, shape.image_size, device=device).clamp(-1, 1),
        has_target=yes,
        time_ids=torch.tensor([[size, size, 0.0, 0.0, size, size]]).expand(count, -1),
        caption_ids=torch.randint(3, 600, (count, queries)),
        caption_ids_2=torch.randint(3, 600, (count, queries)),
    ).to(device)


def blank_features(model: M2ChatModel, shape: BatchShape, device: torch.device | str = "meta") -> FrozenFeatures:
    """Kept features of a batch of `blank_batch`, in fp32.

    Args:
        model: Model whose sizes they follow.
        shape: Sizes of the batch.
        device: Device of the tensors.
    """
    decoder, layers = model.decoder, len(model.read_layers)
    read = shape.image_tokens + max(1, (shape.tokens - shape.image_tokens) // 4)
    states = (shape.batch, read, int(model.llama.config.hidden_size))
    side = shape.image_size // decoder.vae_factor
    return FrozenFeatures(
        states=torch.randn(*states if layers == 1 else (layers, *states), device=device),
        e_clip=torch.randn(shape.batch, decoder.queries, decoder.sequence_width, device=device),
        e_pclip=torch.randn(shape.batch, decoder.pooled_width, device=device) if decoder.pooled_width else None,
        latents=torch.randn(shape.batch, int(decoder.vae.config.latent_channels), side, side, device=device),
        mask=torch.ones(shape.batch, read, dtype=torch.bool, device=device),
    )


def blank_noise(model: M2ChatModel, batch: Batch) -> DiffusionNoise:
    """Noise for a batch, with nothing dropped."""
    device, count = batch.target_pixels.device, len(batch)
    kept = None if batch.features is None else batch.features.latents
    side = batch.target_pixels.shape[-1] // model.decoder.vae_factor if kept is None else kept.shape[-1]
    return DiffusionNoise(
        samples=torch.arange(count, device=device),
        timesteps=torch.randint(int(model.decoder.noiser.config.num_train_timesteps), (count,), device=device),
        noise=torch.randn(count, int(model.decoder.unet.config.in_channels), side, side, device=device),
        drop=torch.zeros(count, dtype=torch.bool, device=device),
    )


def step_loss(
    model: M2ChatModel, batch: Batch, noise: DiffusionNoise, stage: Stage, features: FrozenFeatures | None = None
) -> Tensor:
    """The stage's loss of a batch: Eq. 6 or Eq. 7 with weights of 1, of one process.

    Args:
        model: Frozen as the stage wants.
        batch: Batch of `blank_batch`.
        noise: Noise of all of its samples.
        stage: Training stage, which decides the loss.
        features: Features of the frozen networks, for stage 1; None computes them.
    """
    both = stage == "m3ft"
    output = model(batch, noise, use_image=both, with_text=both, features=features)
    condition = output.condition
    assert output.prediction is not None and output.diffusion_target is not None
    loss = ddpm_loss(output.prediction, output.diffusion_target, batch.has_target)
    loss = loss + align_loss(condition.h_align, output.e_clip, condition.h_palign, output.e_pclip, batch.has_target)
    if both:
        assert output.logits is not None and output.logit_labels is not None
        loss = loss + text_loss(output.logits, output.logit_labels.to(output.logits.device))
    return loss


@dataclass
class StepMeasure:
    """Work and memory of a training step.

    Args:
        forward: Floating-point operations of the forward pass, by component.
        backward: Floating-point operations of the backward pass, by component.
        peak: Maximum of the bytes of activations, temporaries and gradients, without the weights.
        backward_units: FSDP units that take part in the backward pass.
    """

    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    backward_units: set[nn.Module] = field(default_factory=set)

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return sum(self.forward.values()) + sum(self.backward.values())


def measure_step(
    model: ReadingModel,
    stage: AnyStage,
    shape: BatchShape,
    autocast: torch.dtype | None = None,
    cached: bool = False,
) -> StepMeasure:
    """Runs a forward and a backward pass and measures them.

    Args:
        model: Model on the meta device, with the stage's parameters set to be trained.
        stage: Training stage, which decides the loss.
        shape: Sizes of the batch.
        autocast: Precision of autocast, as under ``bf16-mixed``; None for none.
        cached: Whether the outputs of the frozen networks come from a feature cache (stage 1).
    """
    measure, parts = StepMeasure(), components(model)
    batch = blank_batch(model, shape)
    if cached:
        assert isinstance(model, M2ChatModel)
        batch.features = blank_features(model, shape)
    weights = [*model.parameters(), *model.buffers()]
    units = _watch_units(model, measure.backward_units)
    with units, _gradients_leave(model), Meter(weights, parts) as meter, GpuRules(autocast):
        if isinstance(model, M2ChatModel):
            assert stage != "describe"
            loss = step_loss(model, batch, blank_noise(model, batch), stage)
        else:
            logits, labels = model(batch)
            loss = text_loss(logits, labels.to(logits.device))
        # Not `backward`, in which a mode is off: layers that are computed again would go by other rules there.
        engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
    measure.forward = {name: meter.forward[name] for name in parts}
    measure.backward = {name: meter.backward[name] for name in parts}
    measure.peak = meter.peak
    return measure


@contextmanager
def _gradients_leave(model: nn.Module) -> Iterator[None]:
    """Frees each gradient as soon as it is computed, as FSDP does once it has reduced it."""

    def leave(parameter: nn.Parameter) -> None:
        parameter.grad = None

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(leave) for parameter in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watch_units(model: ReadingModel, units: set[nn.Module]) -> Iterator[None]:
    """Finds the units whose results a gradient passes through."""

    def after(module: nn.Module, _: Any, result: Any) -> None:
        first = result[0] if isinstance(result, tuple) else result
        if isinstance(first, Tensor) and first.requires_grad:
            units.add(module)

    hooks = [unit.register_forward_hook(after) for unit in shard_units(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
