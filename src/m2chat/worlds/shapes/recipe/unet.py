"""The micro SDXL UNet and scheduler, and its SD 1.5 twin.

v-prediction with zero terminal SNR: with epsilon-prediction on 8x8 latents even the noisiest step leaks the mean
colour, and the network learns to ignore the text there.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
    to_pixels,
)
from m2chat.worlds.shapes.scenes import Scene, scenes_of_split

_SCHEDULER = dict(
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


_TIME_IDS = 6 * 16
_WIDTHS = {True: (64, 96), False: (48, 64)}
"""Channels of the blocks, of SDXL and of SD 1.5."""
SMALL_WIDTHS = (32, 48)
"""Of the UNet that replaces the first without training of the connector: a quarter of the numbers."""


class Conditioner:
    """The text conditioning of SDXL (or of SD 1.5, with one encoder) from a diffusers folder."""

    def __init__(self, root: Path, is_xl: bool) -> None:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        self.is_xl = is_xl
        self.parts: list[tuple[Any, Any]] = [
            (
                CLIPTokenizer.from_pretrained(root / "tokenizer"),
                CLIPTextModel.from_pretrained(root / "text_encoder", dtype=torch.float32).eval(),
            )
        ]
        if is_xl:
            second = CLIPTextModelWithProjection.from_pretrained(root / "text_encoder_2", dtype=torch.float32)
            self.parts.append((CLIPTokenizer.from_pretrained(root / "tokenizer_2"), second.eval()))

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Sequence (B, Q, C) and pooled (B, P) conditions; SD 1.5 has no pooled one."""
        states, pooled = [], None
        for tokenizer, encoder in self.parts:
            ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2] if self.is_xl else output.last_hidden_state)
            pooled = getattr(output, "text_embeds", None)
        return torch.cat(states, -1), pooled


def _build_unet(is_xl: bool, widths: tuple[int, int]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    xl = dict(
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=96 + _TIME_IDS,
    )
    unet: nn.Module = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=widths,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=160 if is_xl else 64,
        use_linear_projection=True,
        **(xl if is_xl else {}),
    )
    return unet


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
    scheduler = DDIMScheduler(**_SCHEDULER)
    if folder is None:
        scheduler.save_pretrained(root / "scheduler")
    noiser = DDPMScheduler.from_config(scheduler.config)
    unet: Any = _build_unet(is_xl, widths or _WIDTHS[is_xl])
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
            added = {"text_embeds": pooled * keep, "time_ids": _time_ids(batch, rng)}
        output = unet(noisy, timesteps, text * keep[..., None], added_cond_kwargs=added).sample
        schedule.step(F.mse_loss(output, target))
        averaged.update_parameters(unet)
    unet.load_state_dict(averaged.module.state_dict())
    unet.eval()
    save_half(unet, folder or root / "unet")
    if folder is None:
        (root / "model_index.json").write_text(json.dumps(_model_index(is_xl), indent=2) + "\n")
    return {"seed": seed, "steps": steps, **measure_unet(root, is_xl, folder=folder)}


def _choose(scenes: list[Scene], batch: int, objects: int | None, rng: random.Random) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < batch:
        index = rng.randrange(len(scenes))
        if objects is None or (scenes[index].second is None) == (objects == 1):
            chosen.append(index)
    return chosen


def _time_ids(batch: int, rng: random.Random) -> Tensor:
    """Original size, crop and target size of each picture; a fifth pretend to have been scaled down."""
    rows = []
    for _ in range(batch):
        height, width = (32, 32) if rng.random() < 0.8 else (rng.choice((32, 48, 64)), rng.choice((32, 48, 64)))
        rows.append([height, width, 0, 0, 32, 32])
    return torch.tensor(rows, dtype=torch.float32)


def _model_index(is_xl: bool) -> dict[str, object]:
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if not is_xl:
        return {"_class_name": "StableDiffusionPipeline", **parts, "safety_checker": [None, None]}
    second = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts, **second}


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
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    vae: Any = AutoencoderKL.from_pretrained(root / "vae", low_cpu_mem_usage=False).float().eval()
    unet: Any = UNet2DConditionModel.from_pretrained(folder or root / "unet", low_cpu_mem_usage=False).float().eval()
    scheduler: Any = DDIMScheduler.from_pretrained(root / "scheduler")
    condition = Conditioner(root, is_xl)
    rates: dict[str, object] = {"sampling_steps": steps, "guidance": 5.0}
    for name, objects in (("one_object", 1), ("two_objects", 2)):
        scenes = scenes_of_split(split, objects)[:count]  # type: ignore[arg-type]
        text, pooled = condition([caption_of(scene) for scene in scenes])
        latents = torch.randn(len(scenes), 8, 8, 8)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            both = torch.cat([torch.zeros_like(text), text])
            added = None
            if pooled is not None:
                ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2 * len(scenes), -1)
                added = {"text_embeds": torch.cat([torch.zeros_like(pooled), pooled]), "time_ids": ids}
            output = unet(torch.cat([latents, latents]), timestep, both, added_cond_kwargs=added).sample
            negative, positive = output.chunk(2)
            latents = scheduler.step(negative + 5.0 * (positive - negative), timestep, latents).prev_sample
        pictures = stacked_pictures(vae.decode(latents / vae.config.scaling_factor).sample)
        right = [verdict.all_right(scene.attributes) for verdict, scene in zip(judge(pictures), scenes, strict=True)]
        rates[f"all_right_{name}"] = round(sum(right) / len(right), 4)
    return rates
