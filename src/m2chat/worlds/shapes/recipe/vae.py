"""The micro VAE: diffusers' `AutoencoderKL`, factor 4, eight latent channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from m2chat.worlds.shapes.judge import judge
from m2chat.worlds.shapes.recipe.common import (
    Schedule,
    adamw,
    draw,
    save_half,
    scene_pool,
    seed_everything,
    stacked_pictures,
)
from m2chat.worlds.shapes.scenes import IMAGE_SIZE
from m2chat.worlds.small_sdxl import build_vae, to_pixels


def train_vae(folder: Path, steps: int = 4000, batch: int = 16, seed: int = 0) -> dict[str, object]:
    """Trains and saves the VAE.

    L1 + L2 on reconstructions from the latent mode with a little noise, so that latents near each other decode
    alike; the scale of the latents is measured afterwards and stored as `scaling_factor`, as in real VAEs.

    Returns:
        Seed, steps and the quality on held-out scenes.
    """
    rng = seed_everything(seed)
    vae = build_vae((32, 48, 64), size=IMAGE_SIZE, groups=2)
    pool = scene_pool("train", 0.5, 20000, rng)
    pictures = to_pixels(draw(pool, seed))
    schedule = Schedule("vae", adamw([vae], 2e-3, 0.0), 2e-3, steps)
    for _ in schedule:
        pixels = pictures[torch.randint(len(pictures), (batch,))]
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + 0.02 * torch.randn_like(posterior.mean)
        output = vae.decode(latents).sample
        # A weak pull towards unit size and a small fixed posterior width keep `sample()` close to `mode()`.
        prior = 1e-4 * posterior.mean.square().mean() + 1e-4 * (posterior.logvar + 8).square().mean()
        schedule.step(F.l1_loss(output, pixels) + F.mse_loss(output, pixels) + prior)
    vae.eval()
    with torch.no_grad():
        modes = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures[:2048].split(128)])
        vae.register_to_config(scaling_factor=round(float(1 / modes.std()), 5))
        save_half(vae, folder)
        return {"seed": seed, "steps": steps, **measure_vae(vae)}


@torch.no_grad()
def measure_vae(vae: nn.Module, split: str = "test") -> dict[str, object]:
    """Reconstruction quality over held-out scenes: PSNR in dB and the judge's all-right rate."""
    scenes = scene_pool(split, 0.5, 512, seed_everything(1))
    pixels = to_pixels(draw(scenes, 1))
    output = torch.cat([vae.decode(vae.encode(c).latent_dist.mean).sample for c in pixels.split(128)])  # type: ignore[operator]
    error = ((output.clamp(-1, 1) - pixels) / 2).square().mean((1, 2, 3))
    verdicts = judge(stacked_pictures(output))
    right = [verdict.scene == scene for verdict, scene in zip(verdicts, scenes, strict=True)]
    return {"psnr_db": round(float((-10 * error.log10()).mean()), 2), "all_right": sum(right) / len(right)}


def measure_saved(folder: Path) -> dict[str, object]:
    """Measures the VAE of a folder."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    return measure_vae(vae.float().eval())
