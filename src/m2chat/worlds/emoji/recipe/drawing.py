"""Draws pictures for captions with a diffusers folder, and compares them with true ones by pixels alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m2chat.worlds.emoji.recipe.vae import FACTOR, LATENT_CHANNELS, to_pixels
from m2chat.worlds.emoji.scenes import SIZE, Pictures, Scene

GUIDANCE, STEPS = 3.0, 15
SCHEDULER: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
)
"""v-prediction with zero terminal SNR: otherwise the noisiest step still shows the mean colour, and text is ignored."""


class Conditioner:
    """The text conditioning of SDXL, or of SD 1.5 with one encoder, from a diffusers folder; frozen.

    Args:
        root: Folder with ``tokenizer`` and ``text_encoder``, and ``_2`` of each for SDXL.
        is_xl: Whether it is SDXL.
        device: Where it computes.
    """

    def __init__(self, root: Path, is_xl: bool, device: torch.device) -> None:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        self.is_xl, self.device = is_xl, device
        names = [("tokenizer", "text_encoder", CLIPTextModel)]
        if is_xl:
            names.append(("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection))
        self.parts: list[tuple[Any, Any]] = [
            (
                CLIPTokenizer.from_pretrained(root / tokenizer),
                kind.from_pretrained(root / encoder, dtype=torch.float32).eval().to(device),
            )
            for tokenizer, encoder, kind in names
        ]

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Sequence (B, Q, C) and pooled (B, P) conditions; SD 1.5 has no pooled one."""
        states, pooled = [], None
        for tokenizer, encoder in self.parts:
            ids = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            output = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2] if self.is_xl else output.last_hidden_state)
            pooled = getattr(output, "text_embeds", None)
        return torch.cat(states, -1), pooled


def time_ids(count: int, device: torch.device) -> Tensor:
    """Original size, crop and target size of a picture that is what it seems: (B, 6)."""
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(count, -1)


@torch.no_grad()
def draw(
    unet: Any,
    vae: Any,
    condition: Conditioner,
    captions: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 32,
) -> NDArray[np.uint8]:
    """Draws one picture for each caption by DDIM with classifier-free guidance; the negative condition is zeros.

    Returns:
        uint8, (B, 64, 64, 3).
    """
    from diffusers import DDIMScheduler

    device, drawn = condition.device, []
    generator = torch.Generator().manual_seed(seed)
    shape = (LATENT_CHANNELS, SIZE // FACTOR, SIZE // FACTOR)
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        text, pooled = condition(part)
        latents = torch.randn(len(part), *shape, generator=generator).to(device)
        scheduler: Any = DDIMScheduler(**SCHEDULER)
        scheduler.set_timesteps(steps)
        added = None
        if pooled is not None:
            both = torch.cat([torch.zeros_like(pooled), pooled])
            added = {"text_embeds": both, "time_ids": time_ids(2 * len(part), device)}
        for timestep in scheduler.timesteps:
            twice = torch.cat([torch.zeros_like(text), text])
            output = unet(torch.cat([latents, latents]), timestep, twice, added_cond_kwargs=added).sample
            negative, positive = output.chunk(2)
            latents = scheduler.step(negative + guidance * (positive - negative), timestep, latents).prev_sample
        drawn.append(vae.decode(latents / vae.config.scaling_factor).sample.cpu())
    pixels = torch.cat(drawn).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def nearest_rates(
    drawn: NDArray[np.uint8], scenes: Sequence[Scene], gallery: Pictures, side: int = 16
) -> dict[str, float]:
    """How often the nearest true picture by pixels shows the wanted concept: no network decides this.

    Args:
        drawn: uint8, (B, 64, 64, 3).
        scenes: What each should show.
        gallery: True pictures to compare with.
        side: Both are averaged down to this many pixels before.

    Returns:
        Shares 0-1: ``top1`` and ``top10``, by concept, and ``style`` of the nearest.
    """

    def small(pixels: NDArray[np.uint8]) -> Tensor:
        return F.adaptive_avg_pool2d(to_pixels(pixels), side).flatten(1)

    order = torch.cdist(small(drawn), small(gallery.pixels)).topk(min(10, len(gallery)), largest=False).indices.tolist()
    top = [[gallery.scenes[i] for i in row] for row in order]
    pairs = list(zip(scenes, top, strict=True))
    count = len(pairs)
    return {
        "top1": sum(scene.concept == near[0].concept for scene, near in pairs) / count,
        "top10": sum(scene.concept in {n.concept for n in near} for scene, near in pairs) / count,
        "style": sum(scene.style == near[0].style for scene, near in pairs) / count,
    }


def save_sheet(path: Path, rows: Sequence[NDArray[np.uint8]]) -> None:
    """A contact sheet: each row (B, 64, 64, 3) of pictures beneath the other."""
    from PIL import Image

    Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows])).save(path)
