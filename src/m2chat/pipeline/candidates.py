"""Of several pictures of one caption, the one that the image decoder itself takes for a picture of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.pipeline.outputs import ImagePart, PipelineOutput
from m2chat.schema import in_unit_range

if TYPE_CHECKING:
    from m2chat.pipeline.pipeline import M2ChatPipeline

_NOISE = 0.4
"""Place in the noise schedule, 0-1: enough noise to hide the details that are broken, not the whole picture."""
_NOISES = 2


@torch.no_grad()
def denoising_errors(
    pipe: M2ChatPipeline, pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str]
) -> list[float]:
    """How badly the image decoder predicts the noise in pictures when its own text encoders tell it their captions.

    That is L_ddpm (Eq. 5) of each picture at one timestep, with the same noise for all: a diffusion model's judgement
    of how well a picture and a caption fit (arXiv:2303.16203).

    Args:
        pipe: Whose image decoder judges.
        pictures: RGB (H, W, 3) of 0-255, all of one size.
        captions: One each.

    Returns:
        Mean squared errors.
    """
    decoder = pipe.model.decoder
    text, pooled = pipe.encode_captions(captions)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(pipe.device)
    height, width = pixels.shape[-2:]
    timesteps = torch.full((len(pixels),), int(_NOISE * decoder.noiser.config.num_train_timesteps), device=pipe.device)
    errors = torch.zeros(len(pixels))
    with pipe.lock:
        time_ids = text.new_tensor([[height, width, 0, 0, height, width]]).expand(len(pixels), -1)
        latents = decoder.encode_pixels(in_unit_range(pixels).to(text))
        for seed in range(_NOISES):
            noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed)).to(latents)
            noisy, target = decoder.diffuse(latents, noise.expand_as(latents), timesteps)
            predicted = decoder.predict(noisy, timesteps, text, pooled, time_ids)
            errors += (predicted - target).float().square().mean((1, 2, 3)).cpu() / _NOISES
    return errors.tolist()


def best_of(pipe: M2ChatPipeline, candidates: Sequence[PipelineOutput]) -> PipelineOutput:
    """The one whose first picture has the least denoising error; those without a picture come last."""
    drawn = [next((part for part in output.segments if isinstance(part, ImagePart)), None) for output in candidates]
    parts = [part for part in drawn if part is not None]
    if len(candidates) == 1 or not parts:
        return candidates[0]
    found = iter(denoising_errors(pipe, [np.asarray(part.image) for part in parts], [part.caption for part in parts]))
    errors = [math.inf if part is None else next(found) for part in drawn]
    return candidates[errors.index(min(errors))]
