"""What generation will need: memory in each mode, work of a picture, bytes of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from m2chat.models.m2chat import M2ChatModel
from m2chat.models.memory import MODES, MemoryMode, MemoryOptions, int4_group, offload_parts, quantized_linears
from m2chat.planning.meter import Meter
from m2chat.planning.rules import GpuRules

HALF = 2
"""Bytes of a weight in bf16."""


@dataclass(frozen=True)
class Work:
    """What a part of a reply takes.

    Args:
        flops: Floating-point operations.
        peak: Maximum of the bytes of activations.
    """

    flops: int
    peak: int


@dataclass(frozen=True)
class InferencePlan:
    """The needs of a reply with one picture.

    Args:
        weights: Bytes of weights, by mode.
        needs: Maximum of a device's bytes, by mode, without the CUDA context.
        prefill: Reading the conversation.
        step: One denoising step with guidance.
        decode: Decoding of a picture's latents, not tiled.
        cache: Bytes of keys and values of the longest sequence.
        token_bytes: Bytes that the chip reads for each token, by mode.
    """

    weights: dict[MemoryMode, float]
    needs: dict[MemoryMode, float]
    prefill: Work
    step: Work
    decode: Work
    cache: int
    token_bytes: dict[MemoryMode, float]

    @property
    def working(self) -> dict[str, float]:
        """Bytes of activations, keys and values at the worst moment of each component's work, in fp32."""
        peaks = {"language model": self.prefill.peak + self.cache, "UNet": self.step.peak, "VAE": self.decode.peak}
        return {name: 2.0 * peak for name, peak in peaks.items()}  # they were measured in bf16


def stored_bytes(linear: nn.Linear, bits: int) -> float:
    """Bytes of a map's weight, as torchao stores it: with the scales of its rows (int8) or groups (int4)."""
    rows, columns = linear.out_features, linear.in_features
    if bits == 8:
        return rows * columns + rows * 5  # a scale in fp32 and a zero point in int8 each row
    if bits == 4:
        return rows * columns / 2 + rows * columns / int4_group(columns) * 2 * HALF  # a scale and a zero each group
    return rows * columns * HALF


def saved_bytes(model: M2ChatModel, bits: int) -> float:
    """How many bytes fewer than in bf16 the language model has."""
    linears = quantized_linears(model).values()
    return sum(stored_bytes(linear, 16) - stored_bytes(linear, bits) for linear in linears)


def half_bytes(*modules: nn.Module) -> int:
    """Bytes of some modules in bf16."""
    return HALF * sum(parameter.numel() for module in modules for parameter in module.parameters())


def plan_inference(model: M2ChatModel, tokens: int, image_size: int) -> InferencePlan:
    """Measures reading, a denoising step and decoding on the meta device.

    Args:
        model: Model on the meta device, all of it in bf16.
        tokens: Length of the longest sequence.
        image_size: Side of the picture in pixels.
    """
    config = model.llama.config
    cache = HALF * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens
    prefill, step, decode = _works(model, tokens, image_size)
    tile = _works(model, tokens, image_size // 2)[2]
    everything = half_bytes(model)
    weights, needs, token_bytes = {}, {}, {}
    # Of the table of the words a token reads one row, unless it is the output table too.
    table = 0 if config.tie_word_embeddings else half_bytes(model.llama.model.embed_tokens)
    for mode, options in MODES.items():
        saved = saved_bytes(model, options.bits)
        weights[mode] = everything - saved
        needs[mode] = _need(
            model, options, saved, cache, prefill.peak, step.peak, (tile if options.tiling else decode).peak
        )
        token_bytes[mode] = half_bytes(model.llama) - saved - table
    return InferencePlan(weights, needs, prefill, step, decode, cache, token_bytes)


def _need(
    model: M2ChatModel, options: MemoryOptions, saved: float, cache: int, prefill: int, step: int, decode: int
) -> float:
    """The most bytes at once: of all weights, or of the part at work."""
    phases = {"language": prefill + cache, "unet": step, "vae": decode}
    if not options.offload:
        return half_bytes(model) - saved + max(phases.values())
    parts = {name: half_bytes(*modules) for name, (modules, _) in offload_parts(model).items()}
    parts["language"] -= int(saved)
    return half_bytes(model.m3adapter) + max(size + phases.get(name, 0) for name, size in parts.items())


def _works(model: M2ChatModel, tokens: int, image_size: int) -> tuple[Work, Work, Work]:
    decoder = model.decoder
    side = image_size // decoder.vae_factor

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    def read() -> None:
        size = model.clip.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        model.read(torch.zeros(1, tokens, dtype=torch.long, device="meta"), meta(1, 3, size, size))

    def draw() -> None:
        pooled = meta(2, decoder.pooled_width) if decoder.is_xl else None
        latents = meta(2, int(decoder.unet.config.in_channels), side, side)
        step = torch.zeros((), dtype=torch.long, device="meta")
        decoder.predict(latents, step, meta(2, decoder.queries, decoder.sequence_width), pooled, meta(2, 6))

    def show() -> None:
        decoder.decode_latents(meta(1, int(decoder.vae.config.latent_channels), side, side))

    return _work(model, read), _work(model, draw), _work(model, show)


def _work(model: M2ChatModel, task: Callable[[], None]) -> Work:
    weights = [*model.parameters(), *model.buffers()]
    with torch.no_grad(), Meter(weights) as meter, GpuRules():
        task()
    return Work(meter.total, meter.peak)
