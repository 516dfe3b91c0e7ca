"""Timesteps, noise and dropped conditions of L_ddpm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from lightning.pytorch.utilities import rank_zero_info

from m2chat.batch import Batch
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import DiffusionNoise
from m2chat.pipeline.drawing import noise_seed


@dataclass(frozen=True)
class NoiseConfig:
    """What of a batch is drawn.

    Args:
        seed: Seed of the run.
        samples: How many samples, the first with a picture; None for all of them.
        draws: How often each.
        drop: Share of conditions that are dropped, 0-1.
    """

    seed: int = 0
    samples: int | None = None
    draws: int = 1
    drop: float = 0.0


def draw_noise(decoder: ImageDecoder, batch: Batch, step: int, config: NoiseConfig) -> DiffusionNoise:
    """Draws it: a function of seed, step and sample only.

    Of a UNet of few steps only the timesteps are drawn that it was distilled on: of others it says nothing useful.

    So it needs no saved state, and does not depend on how samples are spread over processes.

    Args:
        decoder: Image decoder whose latents get the noise.
        batch: The samples.
        step: Optimiser steps done.
        config: Number of samples and of draws.
    """
    # Without any picture one sample is drawn in vain: under FSDP every process must call the UNet.
    chosen = list(batch.located().drawn[: config.samples]) or [0]
    if batch.features is not None and batch.features.latents is not None:
        shape = tuple(batch.features.latents.shape[1:])
    else:
        sides = (side // decoder.vae_factor for side in batch.target_pixels.shape[-2:])
        shape = (int(decoder.unet.config.in_channels), *sides)
    learned = decoder.learned_timesteps
    timesteps = torch.arange(decoder.noiser.config.num_train_timesteps) if learned is None else torch.tensor(learned)
    steps, noise, drop = [], [], []
    for draw, index in product(range(config.draws), chosen):
        generator = torch.Generator().manual_seed(noise_seed(config.seed, f"{step}/{draw}/{batch.samples[index].id}"))
        steps.append(timesteps[torch.randint(len(timesteps), (1,), generator=generator)])
        drop.append(torch.rand((), generator=generator) < config.drop)
        noise.append(torch.randn(shape, generator=generator))
    # Not blocking: what was drawn reaches a GPU without its work being waited for.
    numbers, at, noises, drops = (
        tensor.to(batch.input_ids.device, non_blocking=True)
        for tensor in (torch.tensor(chosen), torch.cat(steps), torch.stack(noise), torch.stack(drop))
    )
    return DiffusionNoise(numbers, at, noises, drops, config.draws)


def mention_few_steps(decoder: ImageDecoder, lambda_ddpm: float) -> None:
    """Prints what L_ddpm, by its weight, can teach with a UNet of few steps."""
    learned = decoder.learned_timesteps
    if learned is not None and lambda_ddpm:
        shown = ", ".join(map(str, learned[:4])) + (", ..." if len(learned) > 4 else "")
        rank_zero_info(
            f"backbone.decoder.preset={decoder.config.preset}: this UNet was distilled on {len(learned)} timesteps, so "
            f"L_ddpm draws only those ({shown}). The noise is not quite its target: lambda_ddpm=0 trains by alignment "
            "alone"
        )
