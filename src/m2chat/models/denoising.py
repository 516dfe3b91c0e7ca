"""The one denoising loop of the project: from noise to latents, a step at a time.

Shapes: B batch, Q tokens of a caption, C and P widths of the sequence and the pooled condition, h and w of latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2chat.models.refiner import steps_before


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


@dataclass
class Stage:
    """A part of a drawing: the base's steps, or the refiner's.

    Args:
        unet: UNet that predicts.
        scheduler: Scheduler with its timesteps set.
        timesteps: Those of this stage.
        text: Sequence condition, behind the negative one under guidance.
        pooled: Pooled condition.
        ids: Numbers of the picture.
    """

    unet: Any
    scheduler: Any
    timesteps: Tensor
    text: Tensor
    pooled: Tensor | None
    ids: Tensor


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
    text, pooled, ids = h_align, h_palign, time_ids.to(h_align)
    if guided:
        text = torch.cat([torch.zeros_like(text), text])
        pooled = None if pooled is None else torch.cat([torch.zeros_like(pooled), pooled])
        ids = torch.cat([ids, ids])
    stages = [Stage(decoder.unet, scheduler, scheduler.timesteps, text, pooled, ids)]
    if decoder.refiner is not None and h_palign is not None:
        second = started(decoder.refiner.scheduler, steps, h_align.device)
        before = steps_before(second, decoder.refiner.start)
        if hasattr(second, "set_begin_index"):
            second.set_begin_index(before)
        stages[0].timesteps = scheduler.timesteps[: steps_before(scheduler, decoder.refiner.start)]
        condition = decoder.refiner.condition(h_align, h_palign, time_ids.to(h_align), guided)
        stages.append(Stage(decoder.refiner.unet, second, second.timesteps[before:], *condition))
    # Some schedulers step more than once for a step that was asked for.
    number, total = 0, sum(len(stage.timesteps) for stage in stages)
    for stage in stages:
        scheduler = stage.scheduler
        # Schedulers that add noise on the way draw it from the same generators.
        random = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for timestep in stage.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
            predicted = decoder.predict(scaled, timestep, stage.text, stage.pooled, stage.ids, stage.unet)
            if guided:
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
