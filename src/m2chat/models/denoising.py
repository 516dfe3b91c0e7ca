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

from m2chat.errors import UserError
from m2chat.models.precision import full
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
        negative: Negative condition, computed in a separate pass; None for zeros, which go with the positive one, and
            for no guidance.
    """

    unet: Any
    scheduler: Any
    condition: FixedCondition
    negative: FixedCondition | None = None

    def predict(self, scaled: Tensor, index: int, guidance: float | None) -> Tensor:
        """The UNet's prediction in fp32, guided unless `guidance` is None: (B, c, h, w) to the same."""
        if guidance is None or self.negative is not None:
            positive: Tensor = full(self.unet(scaled, fixed=self.condition, index=index, guided=False))
            if guidance is None:
                return positive
            negative: Tensor = full(self.unet(scaled, fixed=self.negative, index=index, guided=False))
        else:
            negative, positive = full(self.unet(scaled, fixed=self.condition, index=index, guided=True)).chunk(2)
        return negative + guidance * (positive - negative)


_Texts = tuple[Tensor, Tensor | None, Tensor]
"""Text (B, Q, C), pooled text (B, P) or None, and numbers (B, 6 or 5)."""


def _stage(
    unet: Any,
    scheduler: Any,
    timesteps: Tensor,
    positive: _Texts,
    negative_ids: Tensor | None,
    empty: tuple[Tensor, Tensor | None] | None,
) -> Stage:
    """A stage with its conditions.

    Args:
        unet: UNet.
        scheduler: Scheduler with its timesteps set.
        timesteps: The stage's timesteps.
        positive: Condition.
        negative_ids: Numbers of the negative condition; None without guidance.
        empty: Texts of the negative condition, (1, Q, at least C) and (1, P); None for zeros.
    """
    text, pooled, ids = positive
    if negative_ids is None:
        return Stage(unet, scheduler, FixedCondition(timesteps, text, pooled, ids))
    if empty is None:
        pooled = None if pooled is None else torch.cat([torch.zeros_like(pooled), pooled])
        return Stage(unet, scheduler, FixedCondition(timesteps, text, pooled, torch.cat([negative_ids, ids])))
    nothing = empty[0][..., -text.shape[-1] :].to(text).expand_as(text)
    pooled_nothing = None if pooled is None or empty[1] is None else empty[1].to(pooled).expand_as(pooled)
    negative = FixedCondition(timesteps, nothing, pooled_nothing, negative_ids)
    return Stage(unet, scheduler, FixedCondition(timesteps, text, pooled, ids), negative)


def size_ids(height: int, width: int, count: int) -> Tensor:
    """SDXL's size conditioning of pictures that are not cropped: original size, crop and target size, (count, 6)."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(count, -1)


def started(scheduler: Any, steps: int, device: torch.device) -> Any:
    """A new scheduler of the same kind, since schedulers remember their step, with its timesteps set.

    Raises:
        UserError: If the scheduler has no such number of steps.
    """
    fresh = type(scheduler).from_config(scheduler.config)
    try:
        fresh.set_timesteps(steps, device=device)
    except (ValueError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"steps={steps}: the scheduler {type(scheduler).__name__} cannot draw in so many ({reason}). Give another "
            "--steps, such as that of the preset, or another --scheduler"
        ) from error
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
    negative_prompt: str | None = None,
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
        negative_prompt: Text whose encoding is the negative condition; None for that of the decoder's folder.

    Yields:
        The state after every step.
    """
    height, width = (int(size) // decoder.vae_factor for size in time_ids[0, 4:])
    shape = (int(decoder.unet.config.in_channels), height, width)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    scheduler = started(decoder.scheduler, steps, h_align.device)
    # Whatever the UNet's precision, latents and sizes are fp32: a step is a small difference of large numbers.
    latents = torch.stack(noise).to(h_align.device) * scheduler.init_noise_sigma
    guided = guidance > 1
    ids, timesteps = full(time_ids.to(h_align.device)), scheduler.timesteps
    refiner = None if h_palign is None else decoder.refiner

    def negative(zeros: bool) -> Any:
        """The negative condition; None for zeros, or without guidance."""
        if not guided or (zeros and negative_prompt is None):
            return None
        return decoder.negative_condition(h_align.device, negative_prompt or "")

    later = []
    if refiner is not None and h_palign is not None:
        second = started(refiner.scheduler, steps, h_align.device)
        before = steps_before(second, refiner.start)
        if hasattr(second, "set_begin_index"):
            second.set_begin_index(before)
        timesteps = timesteps[: steps_before(scheduler, refiner.start)]
        condition, negative_ids = refiner.condition(h_align, h_palign, ids)
        empty = negative(refiner.zeros)
        times = second.timesteps[before:]
        later.append(_stage(refiner.unet, second, times, condition, negative_ids if guided else None, empty))
    condition = (h_align, h_palign, ids)
    first = _stage(decoder.unet, scheduler, timesteps, condition, ids if guided else None, negative(decoder.zeros))
    stages = [first, *later]
    # Some schedulers step more than once for a step that was asked for.
    number, total = 0, sum(len(stage.condition.timesteps) for stage in stages)
    for stage in stages:
        scheduler = stage.scheduler
        # Schedulers that add noise on the way draw it from the same generators.
        random = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        whole = int(scheduler.config.num_train_timesteps)
        for index, timestep in enumerate(stage.condition.timesteps):
            scaled = scheduler.scale_model_input(latents, timestep).to(h_align.dtype)
            acts = guided and interval[0] <= 1 - float(timestep) / whole <= interval[1]
            predicted = stage.predict(scaled, index, guidance if acts else None)
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
            latents = full(state.latents)
