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

from m2chat.worlds.emoji.scenes import SIZE, Pictures, Scene
from m2chat.worlds.small_sdxl import LATENT_CHANNELS, Conditioner, sample, to_pixels

GUIDANCE, STEPS = 3.0, 15
FACTOR = 8
"""Side of a picture over the side of its latents."""


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
    drawn = []
    generator = torch.Generator().manual_seed(seed)
    shape = (LATENT_CHANNELS, SIZE // FACTOR, SIZE // FACTOR)
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        noise = torch.randn(len(part), *shape, generator=generator).to(condition.device)
        drawn.append(sample(unet, vae, condition, part, noise, steps, guidance).cpu())
    pixels = torch.cat(drawn).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def thumbnails(pixels: NDArray[np.uint8], side: int = 16) -> Tensor:
    """Pictures (B, 64, 64, 3), averaged down to `side` pixels, as rows: (B, 3 x side x side)."""
    chunks = [pixels[start : start + 1024] for start in range(0, len(pixels), 1024)]  # all of them as floats: 0.5 GB
    return torch.cat([F.adaptive_avg_pool2d(to_pixels(chunk), side).flatten(1) for chunk in chunks])


def nearest_scenes(drawn: NDArray[np.uint8], gallery: Pictures, small: Tensor, count: int = 1) -> list[list[Scene]]:
    """Scenes of the true pictures that are nearest by pixels, the nearest first: no network decides this.

    Args:
        drawn: uint8, (B, 64, 64, 3).
        gallery: True pictures to compare with.
        small: Their `thumbnails`.
        count: Scenes of each picture.
    """
    side = int((small.shape[1] // 3) ** 0.5)
    distances = torch.cdist(thumbnails(drawn, side), small)
    order = distances.topk(min(count, len(gallery)), largest=False).indices.tolist()
    return [[gallery.scenes[i] for i in row] for row in order]


def nearest_rates(drawn: NDArray[np.uint8], scenes: Sequence[Scene], gallery: Pictures) -> dict[str, float]:
    """How often the nearest true picture by pixels shows the wanted concept.

    Args:
        drawn: uint8, (B, 64, 64, 3).
        scenes: What each should show.
        gallery: True pictures to compare with.

    Returns:
        Shares 0-1: ``top1`` and ``top10``, by concept, and ``style`` of the nearest.
    """
    top = nearest_scenes(drawn, gallery, thumbnails(gallery.pixels), 10)
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
