"""A LoRA with which the micro UNet draws in four steps; `ConsistencyLora` has the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from m2chat.models.denoising import size_ids
from m2chat.worlds.consistency import LORA, ConsistencyLora
from m2chat.worlds.shapes.captions import caption_of, random_caption
from m2chat.worlds.shapes.judge import judge
from m2chat.worlds.shapes.recipe.common import (
    Schedule,
    adamw,
    draw,
    scene_pool,
    seed_everything,
    stacked_pictures,
)
from m2chat.worlds.shapes.scenes import IMAGE_SIZE, scenes_of_split
from m2chat.worlds.small_sdxl import Conditioner, to_pixels

_FOLDER = Path("decoders", "lcm_lora")


def train_lora(root: Path) -> dict[str, object]:
    """Distils the UNet of ``<root>/sdxl``, and measures the LoRA."""
    return {**train_consistency_lora(root / "sdxl", root / _FOLDER), **measure_lora(root)}


def measure_lora(root: Path) -> dict[str, object]:
    """The rates of `measure_consistency_lora` of that LoRA."""
    return measure_consistency_lora(root / "sdxl", root / _FOLDER)


def train_consistency_lora(
    root: Path,
    target: Path,
    steps: int = 600,
    batch: int = 16,
    rank: int = 4,
    guidance: float = 5.0,
    seed: int = 0,
    lr: float = 1e-3,
) -> dict[str, object]:
    """Distils the UNet of a diffusers folder into a LoRA.

    Args:
        root: The diffusers folder, an SDXL; it stays as it is.
        target: Folder of the LoRA, in the form of diffusers.
        steps: Optimiser steps.
        batch: Pictures a step.
        rank: Rank of the LoRA.
        guidance: Guidance scale of the teacher.
        seed: Seed of the initial values, the scenes and the noise.
        lr: Peak learning rate.

    Returns:
        Seed, steps, rank.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    rng = seed_everything(seed)
    vae: Any = AutoencoderKL.from_pretrained(root / "vae", low_cpu_mem_usage=False).float().eval()
    unet: Any = UNet2DConditionModel.from_pretrained(root / "unet", low_cpu_mem_usage=False).float().eval()
    condition = Conditioner(root, is_xl=True)
    noiser: Any = DDPMScheduler.from_pretrained(root / "scheduler")
    lora = ConsistencyLora(unet, rank, noiser, IMAGE_SIZE, guidance)
    averaged = [p.detach().clone() for p in lora.parameters]

    scenes = scene_pool("train", 0.5, 8000, rng)
    pictures = to_pixels(draw(scenes, seed))
    with torch.no_grad():
        modes = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(128)])
    latents_of = modes * vae.config.scaling_factor
    schedule = Schedule("consistency LoRA", adamw([unet], lr, 0.0), lr, steps, every=25)
    for _ in schedule:
        chosen = torch.tensor([rng.randrange(len(scenes)) for _ in range(batch)])
        text, pooled = condition([random_caption(scenes[i], rng) for i in chosen.tolist()])
        assert pooled is not None  # of SDXL
        schedule.step(lora.loss(latents_of[chosen], text, pooled))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, lora.parameters, 0.05)  # type: ignore[arg-type]
    with torch.no_grad():
        for average, parameter in zip(averaged, lora.parameters, strict=True):
            parameter.copy_(average)
    lora.save(target)
    return {"seed": seed, "steps": steps, "rank": rank}


@torch.no_grad()
def measure_consistency_lora(root: Path, target: Path, count: int = 100, split: str = "test") -> dict[str, object]:
    """How pictures of four steps and of one turn out without guidance, with the LoRA and, to compare, without it.

    The judge alone cannot tell the two apart: on exact captions the micro UNet is right in one step by itself.

    Args:
        root: The diffusers folder.
        target: Folder of the LoRA.
        count: Pictures of each kind and number of steps.
        split: Split of the scenes.

    Returns:
        All-right rates, and ``off``: mean absolute difference, on a scale of 0-255, from what the UNet draws of the
        same caption in 25 steps at guidance 5 from the same noise.
    """
    from m2chat.models.decoder_config import DecoderConfig, LoraConfig
    from m2chat.models.image_decoder import ImageDecoder

    condition = Conditioner(root, is_xl=True)
    teacher = ImageDecoder(root)
    of_lora = DecoderConfig(lora=[LoraConfig(str(target / LORA))], preset="lcm-4")
    plain = DecoderConfig(preset="lcm-4")
    students = {"": ImageDecoder(root, config=of_lora), "plain_": ImageDecoder(root, config=plain)}
    rates: dict[str, object] = {"guidance": 1.0, "scheduler": "lcm"}
    for name, objects in (("one_object", 1), ("two_objects", 2)):
        scenes = scenes_of_split(split, objects)[:count]  # type: ignore[arg-type]
        text, pooled = condition([caption_of(scene) for scene in scenes])
        ids = size_ids(IMAGE_SIZE, IMAGE_SIZE, len(scenes))
        wanted = teacher.sample(text, pooled, ids, range(len(scenes)), 25, 5.0)
        for prefix, decoder in students.items():
            for steps in (4, 1):
                pixels = decoder.sample(text, pooled, ids, range(len(scenes)), steps, 1.0)
                verdicts = judge(stacked_pictures(pixels))
                right = [verdict.all_right(scene.attributes) for verdict, scene in zip(verdicts, scenes, strict=True)]
                rates[f"{prefix}all_right_{name}_{steps}_steps"] = round(sum(right) / len(right), 4)
                rates[f"{prefix}off_{name}_{steps}_steps"] = round(float((pixels - wanted).abs().mean()) * 127.5, 2)
    return rates
