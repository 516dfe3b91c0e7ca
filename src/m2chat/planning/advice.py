"""What would make a training fit: each change by itself, and as many of them together as it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from m2chat.models.m2chat import M2ChatModel
from m2chat.models.reading import ReadingModel
from m2chat.models.trainable import AnyStage
from m2chat.planning.inference import stored_bytes
from m2chat.planning.step import BatchShape
from m2chat.planning.training import Placement


@dataclass(frozen=True)
class Change:
    """A change of a configuration.

    Args:
        how: How it is made.
        total: Bytes of a GPU with it and with those before it.
        exists: Whether it can be had; if not, it is what would have to be built.
    """

    how: str
    total: float
    exists: bool = True


def changes(
    model: ReadingModel,
    stage: AnyStage,
    shape: BatchShape,
    devices: int,
    layouts: tuple[Placement, Placement],
    cached: bool,
    checkpointing: bool,
    peak: Callable[[int, bool], float],
) -> list[Change]:
    """Changes one after the other, from the one that costs least; each is made on top of those before it.

    Args:
        model: Model of the plan.
        stage: Training stage.
        shape: Sizes of a GPU's batch.
        devices: Number of GPUs.
        layouts: The configured placement of the frozen networks, and the other one.
        cached: Whether the outputs of the frozen networks come from a feature cache.
        checkpointing: Whether activations are recomputed already.
        peak: Function that measures the activations of so many samples, recomputed or not.
    """
    memory, spared, found = layouts[0].memory, 0, list[Change]()
    if stage == "align" and not cached:
        spared = cached_bytes(model)
        whole = layouts[0].memory.weights >= layouts[1].memory.weights
        memory = replace(memory, weights=memory.weights - spared / (1 if whole else devices))
        found.append(Change("train from a feature cache (--features, m2chat data features)", memory.total))
    if shape.batch > 1:
        least = replace(memory, activations=peak(1, checkpointing))
        each = (memory.activations - least.activations) / (shape.batch - 1)
        memory = least
        how = f"data.batch_size 1 instead of {shape.batch}, {each / 1e9:.2f} GB each (data.global_batch accumulates)"
        found.append(Change(how, memory.total))
    if not checkpointing:
        memory = replace(memory, activations=peak(1, True))
        found.append(Change("model.init_args.gradient_checkpointing true", memory.total))
    if devices > 1 and layouts[1].memory.weights < layouts[0].memory.weights:
        weights = layouts[1].memory.weights - spared / devices
        memory = replace(layouts[1].memory, weights=weights, activations=memory.activations)
        found.append(Change("model.init_args.shard_frozen true", memory.total))
    elif stage != "align":
        for bits in (8, 4):
            fewer = replace(memory, weights=memory.weights - spared_bytes(model, bits))
            how = f"the language model's frozen maps in int{bits} (a gradient through them is not built yet)"
            found.append(Change(how, fewer.total, exists=False))
    return found


def cached_bytes(model: ReadingModel) -> int:
    """Bytes of the networks that a feature cache of stage 1 makes superfluous."""
    parts: list[nn.Module] = [model.llama, model.clip, model.visual_query]
    if isinstance(model, M2ChatModel):
        decoder = model.decoder
        vae = [getattr(decoder.vae, name, None) for name in ("encoder", "quant_conv")]
        parts += [part for part in (decoder.text_encoder, decoder.text_encoder_2, *vae) if part is not None]
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def spared_bytes(model: ReadingModel, bits: int) -> float:
    """How many bytes fewer the frozen maps of the language model's layers would take."""
    linears = [m for m in model.llama.model.layers.modules() if isinstance(m, nn.Linear)]
    return sum(m.weight.nbytes - stored_bytes(m, bits) for m in linears if not m.weight.requires_grad)


def advice(found: list[Change], limit: float) -> list[str]:
    """Lines that say what fits within a number of bytes, up to the first change that makes it fit."""
    lines = []
    for number, change in enumerate(found):
        fits = change.total <= limit
        added = "and " if number else ""
        lines.append(f"- {added}{change.how}: {change.total / 1e9:.2f} GB{', which fits' if fits else ''}")
        if fits and change.exists:
            return lines
    if not any(change.total <= limit for change in found):
        lines.append(f"- nothing known here fits {limit / 1e9:g} GB: take a larger card")
    return lines
