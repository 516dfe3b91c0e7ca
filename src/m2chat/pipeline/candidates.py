"""Choice among pictures of one caption: the one that the image decoder itself finds most like the caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from m2chat.batch import in_unit_range
from m2chat.models.denoising import size_ids
from m2chat.pipeline.base import PipelineBase
from m2chat.pipeline.outputs import PipelineOutput
from m2chat.schema import Picture

_NOISE = 0.4
"""Timestep as a share of the noise schedule: enough noise to hide broken details, not the whole picture."""
_NOISES = 2
"""Noises over which the error is averaged."""


@torch.no_grad()
def denoising_errors(pipe: PipelineBase, pictures: Sequence[Picture], captions: Sequence[str]) -> list[float]:
    """The image decoder's denoising error of pictures, conditioned on their captions by its own text encoders.

    That is L_ddpm (Eq. 5) of each picture at one timestep, with the same noise for all: a diffusion model as a
    classifier, as in arXiv:2303.16203.

    Args:
        pipe: Pipeline with the image decoder.
        pictures: B pictures, RGB (H, W, 3) of 0-255, all of one size.
        captions: B captions.

    Returns:
        Mean squared errors of the predicted noise, B of them; lower means more alike.
    """
    decoder = pipe.model.decoder
    text, pooled = pipe.encode_captions(captions)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(pipe.device)
    height, width = pixels.shape[-2:]
    timestep = int(_NOISE * decoder.noiser.config.num_train_timesteps)
    if decoder.learned_timesteps is not None:  # a UNet of few steps knows no others
        timestep = min(decoder.learned_timesteps, key=lambda known: abs(known - timestep))
    timesteps = torch.full((len(pixels),), timestep, device=pipe.device)
    errors = torch.zeros(len(pixels))
    with pipe.lock:
        time_ids = size_ids(height, width, len(pixels)).to(pipe.device)
        latents = decoder.encode_pixels(in_unit_range(pixels))
        for seed in range(_NOISES):
            noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed)).to(latents)
            noisy, target = decoder.diffuse(latents, noise.expand_as(latents), timesteps)
            predicted = decoder.predict(noisy, timesteps, text, pooled, time_ids)
            errors += (predicted - target).square().mean((1, 2, 3)).cpu() / _NOISES
    return errors.tolist()


def best_of(pipe: PipelineBase, candidates: Sequence[PipelineOutput]) -> PipelineOutput:
    """The candidate whose first picture has the lowest denoising error; those without a picture come last."""
    firsts = [output.pictures[0] if output.pictures else None for output in candidates]
    parts = [part for part in firsts if part is not None]
    if len(candidates) == 1 or not parts:
        return candidates[0]
    computed = iter(
        denoising_errors(pipe, [np.asarray(part.image) for part in parts], [part.caption for part in parts])
    )
    errors = [math.inf if part is None else next(computed) for part in firsts]
    return candidates[errors.index(min(errors))]
