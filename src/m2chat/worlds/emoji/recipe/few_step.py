"""The few-step twin: a LoRA with which the pocket UNet draws in four steps without guidance."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.worlds.consistency import ConsistencyLora
from m2chat.worlds.emoji.captions import draw_caption
from m2chat.worlds.emoji.recipe.course import Course, Plan
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.recipe.unet import Latents, picture_weights_of
from m2chat.worlds.emoji.scenes import SIZE, Pictures
from m2chat.worlds.small_sdxl import SCHEDULER, Conditioner

PLAN = Plan(steps=3000, lr=1e-3, warmup=100, decay=1500, ema=0.98, weight_decay=0.0)
RANK, GUIDANCE = 8, 3.0
FOLDER = Path("decoders", "lcm_lora")


def train_few_step(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 16,
    seed: int = 0,
    device: str = "auto",
    rank: int = RANK,
) -> bool:
    """Distils ``<out>/weights/sdxl/unet`` into a LoRA in ``<out>/weights/decoders/lcm_lora``.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training, with the finished SDXL and the UNet's latents.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        rank: Rank of the LoRA.

    Returns:
        Whether the plan's end was reached.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel

    root, where, seen = out / "weights" / "sdxl", device_of(device), pictures.of("train")
    if not (root / "unet" / "config.json").is_file():
        raise UserError(f"there is no UNet in {root}: train the part unet first")
    latents = Latents(out / "unet", root / "vae", seen, False, where)
    condition = Conditioner(root, True, where)
    torch.manual_seed(seed)
    unet: Any = UNet2DConditionModel.from_pretrained(root / "unet", low_cpu_mem_usage=False).float().eval().to(where)
    noiser = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})
    lora = ConsistencyLora(unet, rank, noiser, SIZE, GUIDANCE)
    course = Course(
        out / "few_step", {"lora": nn.ParameterList(lora.parameters)}, plan, seed, {"rank": rank, "guidance": GUIDANCE}
    )
    weights = picture_weights_of(seen)

    def loss_of(rng: random.Random) -> Tensor:
        chosen = rng.choices(range(len(seen)), weights, k=batch)
        text, pooled = condition([draw_caption(seen.scenes[i], rng).text for i in chosen])
        assert pooled is not None  # of SDXL
        with precision(where):
            return lora.loss(latents.values[chosen].to(where), text, pooled)

    finished = course.run(loss_of, None, every=50)
    with course.averaged():
        lora.save(out / "weights" / FOLDER)
    return finished
