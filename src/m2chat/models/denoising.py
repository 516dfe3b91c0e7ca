"""The one denoising loop of the project: from noise to latents, a step at a time.

Shapes: B batch, R rows of a step (B, or 2 B under guidance, the negative ones first), S steps, Q tokens of a caption, C
and P widths of the sequence and the pooled condition, c, h and w of latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.models.refiner import steps_before
from m2chat.models.schedulers import WHOLE, Interval


@dataclass
class Denoising:
    """Where the drawing of some pictures stands after a step.

    Args:
        step: Steps done, from 1.
        steps: Steps in all.
        timestep: Timestep of the noise schedule.
        latents: Latents of this step, (B, c, h, w); replacing them changes the start of the next step.
        estimate: The scheduler's estimate of the final latents, (B, c, h, w).
    """

    step: int
    steps: int
    timestep: int
    latents: Tensor
    estimate: Tensor


OnStep = Callable[[Denoising], bool | None]
"""Called after every denoising step; may replace `Denoising.latents`; true ends the drawing where it stands."""


@dataclass(eq=False)
class FixedCondition:
    """The condition of a drawing, and what its first step computes for all of them.

    Args:
        timesteps: Timesteps, (S,).
        text: (B, Q, C).
        pooled: (R, P), or None for SD 1.5; R is 2 B if any step is guided.
        time_ids: (R, 6), or (R, 5) for the refiner.
        shifts: Shift of each residual block, (S, R, channels, 1, 1); R is 1 for SD 1.5.
        attended: Keys and values of each cross-attention, (B, heads, Q, width of a head).
    """

    timesteps: Tensor
    text: Tensor
    pooled: Tensor | None
    time_ids: Tensor
    shifts: dict[nn.Module, Tensor] = field(default_factory=dict)
    attended: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Stage:
    """A part of a drawing: the base's steps, or the refiner's.

    Args:
        unet: UNet that predicts.
        scheduler: Scheduler with its timesteps set.
        condition: Its timesteps, and the condition.
    """

    unet: Any
    scheduler: Any
    condition: FixedCondition


def size_ids(height: int, width: int, count: int) -> Tensor:
    """SDXL's size conditioning of pictures that are not cropped: original size, crop and target size, (count, 6)."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(count, -1)


def started(scheduler: Any, steps: int, device: torch.device) -> Any:
    """A new scheduler of the same kind, since schedulers remember their step, with its timesteps set."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps, device=device)
    return fresh


@torch.inference_mode()
def denoise(
    decoder: Any,
    h_align: Tensor,
    h_palign: Tensor | None,
    time_ids: Tensor,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    interval: Interval = WHOLE,
) -> Iterator[Denoising]:
    """Draws a step at a time; arguments as for `ImageDecoder.denoise`.

    Args:
        decoder: `ImageDecoder` that draws.
        h_align: (B, Q, C).
        h_palign: (B, P).
        time_ids: (B, 6); their last two are the pictures' height and width.
        seeds: Seed of each picture's noise.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        interval: Shares of the noise schedule between which guidance acts.

    Yields:
        The state after every step.
    """
    height, width = (int(size) // decoder.vae_factor for size in time_ids[0, 4:])
    shape = (int(decoder.unet.config.in_channels), height, width)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    scheduler = started(decoder.scheduler, steps, h_align.device)
    latents = torch.stack(noise).to(h_align) * scheduler.init_noise_sigma
    guided = guidance > 1
    pooled, ids = h_palign, time_ids.to(h_align)
    if guided:
        pooled = None if pooled is None else torch.cat([torch.zeros_like(pooled), pooled])
        ids = torch.cat([ids, ids])
    timesteps = scheduler.timesteps
    stages = []
    if decoder.refiner is not None and h_palign is not None:
        second = started(decoder.refiner.scheduler, steps, h_align.device)
        before = steps_before(second, decoder.refiner.start)
        if hasattr(second, "set_begin_index"):
            second.set_begin_index(before)
        timesteps = timesteps[: steps_before(scheduler, decoder.refiner.start)]
        condition = decoder.refiner.condition(h_align, h_palign, time_ids.to(h_align), guided)
        stages.append(Stage(decoder.refiner.unet, second, FixedCondition(second.timesteps[before:], *condition)))
    stages.insert(0, Stage(decoder.unet, scheduler, FixedCondition(timesteps, h_align, pooled, ids)))
    # Some schedulers step more than once for a step that was asked for.
    number, total = 0, sum(len(stage.condition.timesteps) for stage in stages)
    for stage in stages:
        scheduler = stage.scheduler
        # Schedulers that add noise on the way draw it from the same generators.
        random = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        whole = int(scheduler.config.num_train_timesteps)
        for index, timestep in enumerate(stage.condition.timesteps):
            scaled = scheduler.scale_model_input(latents, timestep)
            acts = guided and interval[0] <= 1 - float(timestep) / whole <= interval[1]
            predicted = stage.unet(scaled, fixed=stage.condition, index=index, guided=acts)
            if acts:
                negative, positive = predicted.chunk(2)
                predicted = negative + guidance * (positive - negative)
            output = scheduler.step(predicted, timestep, latents, **random)
            estimate = getattr(output, "pred_original_sample", None)
            number += 1
            state = Denoising(
                number,
                total,
                int(timestep),
                output.prev_sample,
                output.prev_sample if estimate is None else estimate,
            )
            yield state
            latents = state.latents
