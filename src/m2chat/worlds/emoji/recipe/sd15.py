"""The pocket SD 1.5 twin: one text encoder, no pooled condition, the VAE of the pocket SDXL."""

from __future__ import annotations

from pathlib import Path

from m2chat.worlds.emoji.recipe.course import Plan
from m2chat.worlds.emoji.recipe.unet import train_unet
from m2chat.worlds.emoji.scenes import Pictures

PLAN = Plan(steps=30000, lr=1.5e-3, warmup=500, decay=8000, ema=0.999)


def train_sd15(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 32,
    seed: int = 0,
    device: str = "auto",
    new_latents: bool = False,
    widths: tuple[int, ...] | None = None,
) -> bool:
    """Trains the twin's UNet into ``<out>/weights/sd15``; arguments and result as of `train_unet`."""
    return train_unet(pictures, out, plan, batch, seed, device, new_latents=new_latents, widths=widths, is_xl=False)
