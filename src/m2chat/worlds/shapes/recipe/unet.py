"""The micro SDXL UNet and scheduler, and its SD 1.5 twin."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from m2chat.worlds.shapes.captions import caption_of, random_caption
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
from m2chat.worlds.shapes.scenes import IMAGE_SIZE, Scene, scenes_of_split
from m2chat.worlds.small_sdxl import (
    SCHEDULER,
    Conditioner,
    build_unet,
    random_time_ids,
    sample,
    to_pixels,
    write_model_index,
)

_WIDTHS = {True: (64, 96), False: (48, 64)}
"""Channels of the blocks, of SDXL and of SD 1.5."""
SMALL_WIDTHS = (32, 48)
"""Of the UNet that replaces the first without training of the connector: a quarter of the numbers."""
_SMALL = Path("decoders", "unet_small")


def train_unet(
    root: Path,
    steps: int = 5500,
    is_xl: bool = True,
    batch: int = 32,
    seed: int = 0,
    lr: float = 1.5e-3,
    widths: tuple[int, int] | None = None,
    folder: Path | None = None,
) -> dict[str, object]:
    """Trains the UNet of a diffusers folder that already has its VAE and text encoders, and completes the folder.

    Captions come in every style of the world, partial ones too, so that what a caption leaves out is free. One
    tenth of the conditions are zeros, as SDXL was trained. The saved weights are an exponential moving average.

    Args:
        root: The diffusers folder.
        steps: Optimiser steps.
        is_xl: Whether it is SDXL; if not, SD 1.5.
        batch: Pictures a step.
        seed: Seed of the initial values, the scenes and the noise.
        lr: Peak learning rate.
        widths: Channels of the two blocks; by default those of the shipped UNet of this kind.
        folder: Folder of another UNet for the same text encoders and VAE; the diffusers folder stays as it is.

    Returns:
        Seed, steps and the all-right rates on held-out captions.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler

    rng = seed_everything(seed)
    vae: Any = AutoencoderKL.from_pretrained(root / "vae", low_cpu_mem_usage=False).float().eval()
    condition = Conditioner(root, is_xl)
    scheduler = DDIMScheduler(**SCHEDULER)
    if folder is None:
        scheduler.save_pretrained(root / "scheduler")
    noiser = DDPMScheduler.from_config(scheduler.config)
    widths = widths or _WIDTHS[is_xl]
    unet = build_unet(widths, 8, heads=4, sequence=160 if is_xl else 64, pooled=96 if is_xl else None)
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    averaged: Any = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=ema)

    scenes = scene_pool("train", 0.5, 16000, rng)
    pictures = to_pixels(draw(scenes, seed))
    with torch.no_grad():
        modes = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(128)])
    latents_of = modes * vae.config.scaling_factor
    schedule = Schedule("sdxl unet" if is_xl else "sd15 unet", adamw([unet], lr), lr, steps)
    for step in schedule:
        # One object first, then both kinds: singles teach colour and shape, which pairs need.
        wanted = 1 if step < steps // 8 else None
        chosen = torch.tensor(_choose(scenes, batch, wanted, rng))
        text, pooled = condition([random_caption(scenes[i], rng) for i in chosen.tolist()])
        keep = (torch.rand(batch) >= 0.1).float()[:, None]
        latents = latents_of[chosen]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,))
        noisy = noiser.add_noise(latents, noise, timesteps)
        target = noiser.get_velocity(latents, noise, timesteps)
        added = None
        if pooled is not None:
            added = {"text_embeds": pooled * keep, "time_ids": random_time_ids(batch, IMAGE_SIZE, rng)}
        output = unet(noisy, timesteps, text * keep[..., None], added_cond_kwargs=added).sample
        schedule.step(F.mse_loss(output, target))
        averaged.update_parameters(unet)
    unet.load_state_dict(averaged.module.state_dict())
    unet.eval()
    save_half(unet, folder or root / "unet")
    if folder is None:
        write_model_index(root, is_xl)
    return {"seed": seed, "steps": steps, **measure_unet(root, is_xl, folder=folder)}


def train_small(root: Path) -> dict[str, object]:
    """Trains another UNet for the text encoders and the VAE of ``<root>/sdxl``, a quarter as large as the first."""
    return train_unet(root / "sdxl", steps=4500, seed=1, lr=2e-3, widths=SMALL_WIDTHS, folder=root / _SMALL)


def measure_small(root: Path) -> dict[str, object]:
    """The rates of `measure_unet` with that UNet."""
    return measure_unet(root / "sdxl", folder=root / _SMALL)


def train_sd15(root: Path) -> dict[str, object]:
    """Trains the SD 1.5 twin in ``<root>/sd15``, on the VAE and the first text encoder of ``<root>/sdxl``."""
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(root / "sdxl" / name, root / "sd15" / name, dirs_exist_ok=True)
    return train_unet(root / "sd15", steps=3500, is_xl=False)


def _choose(scenes: list[Scene], batch: int, objects: int | None, rng: random.Random) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < batch:
        index = rng.randrange(len(scenes))
        if objects is None or (scenes[index].second is None) == (objects == 1):
            chosen.append(index)
    return chosen


@torch.no_grad()
def measure_unet(
    root: Path, is_xl: bool = True, count: int = 200, steps: int = 20, split: str = "test", folder: Path | None = None
) -> dict[str, object]:
    """All-right rates of pictures drawn for exact held-out captions, of one and of two objects.

    Args:
        root: The diffusers folder.
        is_xl: Whether it is SDXL; if not, SD 1.5.
        count: Pictures of each kind.
        steps: Denoising steps.
        split: Split of the scenes.
        folder: The UNet's folder if it is another than the diffusers folder's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(1)
    vae: Any = AutoencoderKL.from_pretrained(root / "vae", low_cpu_mem_usage=False).float().eval()
    unet: Any = UNet2DConditionModel.from_pretrained(folder or root / "unet", low_cpu_mem_usage=False).float().eval()
    condition = Conditioner(root, is_xl)
    rates: dict[str, object] = {"sampling_steps": steps, "guidance": 5.0}
    for name, objects in (("one_object", 1), ("two_objects", 2)):
        scenes = scenes_of_split(split, objects)[:count]  # type: ignore[arg-type]
        captions = [caption_of(scene) for scene in scenes]
        drawn = sample(unet, vae, condition, captions, torch.randn(len(scenes), 8, 8, 8), steps, guidance=5.0)
        pictures = stacked_pictures(drawn)
        right = [verdict.all_right(scene.attributes) for verdict, scene in zip(judge(pictures), scenes, strict=True)]
        rates[f"all_right_{name}"] = round(sum(right) / len(right), 4)
    return rates
