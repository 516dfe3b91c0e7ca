"""Trains the judge on all true pictures under heavy augmentation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.worlds.emoji.judge import JudgeNetwork, PictureJudge
from m2chat.worlds.emoji.recipe.course import Course, Plan
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.recipe.vae import picture_weights
from m2chat.worlds.emoji.scenes import Pictures, core_concepts
from m2chat.worlds.small_sdxl import to_pixels

PLAN = Plan(steps=5000, lr=2e-3, warmup=200, decay=2000, ema=0.998, weight_decay=0.02)


def augmented(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Pictures turned, scaled, moved, blurred, in other light, noisy, as a decoder may draw them.

    Never mirrored: a left arrow is no right arrow.

    Args:
        pixels: Pictures in [-1, 1], (B, 3, H, W).
        generator: Source of randomness.
        strength: Share of each change, 0-1.
    """
    count, size = len(pixels), pixels.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, shift = strength * uniform(-0.16, 0.16), strength * uniform(-0.12, 0.12, 2)
    scale = 1 + strength * uniform(-0.12, 0.15)
    rows = torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1)
    columns = torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([rows, columns], 1), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels - 1, grid, padding_mode="zeros", align_corners=False) + 1  # what comes in is white
    soft = F.interpolate(F.avg_pool2d(moved, 2), size=size, mode="bilinear", align_corners=False)
    softness = strength * uniform(-0.5, 1.0, 1, 1, 1).clamp(min=0)
    moved = moved * (1 - softness) + soft * softness
    # Little light: with more of it one skin tone would be another.
    gain, offset = 1 + strength * uniform(-0.08, 0.05, 3, 1, 1), strength * uniform(-0.04, 0.04, 3, 1, 1)
    lit = (moved + 1) * gain - 1 + offset
    noise = torch.randn(lit.shape, generator=generator) * strength * uniform(0, 0.15, 1, 1, 1)
    return (lit + noise).clamp(-1, 1)


def train_judge(
    pictures: Pictures, out: Path, plan: Plan = PLAN, batch: int = 64, seed: int = 0, device: str = "auto"
) -> bool:
    """Trains the judge and saves it into ``<out>/weights/judge``.

    Args:
        pictures: The whole world.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Whether the plan's end was reached.
    """
    torch.manual_seed(seed)
    where, folder = device_of(device), out / "weights" / "judge"
    network = JudgeNetwork(len(pictures.concepts)).to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    course = Course(out / "judge", {"network": network}, plan, seed, {"concepts": len(pictures.concepts)})
    judge = PictureJudge(network, pictures)
    network.train()
    weights = [weight**0.5 for weight in picture_weights(pictures)]

    def loss_of(rng: random.Random) -> Tensor:
        chosen = rng.choices(range(len(pictures)), weights, k=batch)
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        pixels = augmented(to_pixels(pictures.pixels[chosen]), generator).to(where)
        with precision(where):
            logits = network(pixels)
            losses = [
                F.cross_entropy(values, judge.codes[name][chosen].to(where), label_smoothing=0.05)
                for name, values in logits.items()
            ]
        return torch.stack(losses).sum()

    def measure() -> dict[str, object]:
        save_judge(network, folder)
        return measure_judge(judge, pictures)

    finished = course.run(loss_of, measure, every=100, measure_every=1000)
    with course.averaged():
        print(json.dumps(measure()), flush=True)
    return finished


def save_judge(network: JudgeNetwork, folder: Path) -> None:
    """Saves the weights in fp16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def measure_judge(judge: PictureJudge, pictures: Pictures, count: int = 2000) -> dict[str, object]:
    """Shares of attributes read right on augmentations that no training step has used, of all and of the core list."""
    chosen = random.Random(1).sample(range(len(pictures)), min(count, len(pictures)))
    shown = augmented(to_pixels(pictures.pixels[chosen]), torch.Generator().manual_seed(2**40 + 1))
    drawn = shown.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    verdicts = judge.read(drawn)
    scenes = [pictures.scenes[i] for i in chosen]
    pairs = list(zip(verdicts, scenes, strict=True))
    result: dict[str, object] = {
        name: round(sum(v.scene.attributes[name] == s.attributes[name] for v, s in pairs) / len(pairs), 4)
        for name in scenes[0].attributes
    }
    result["all_right"] = round(sum(v.scene.attributes == s.attributes for v, s in pairs) / len(pairs), 4)
    core = [(v, s) for v, s in pairs if s.concept in set(core_concepts())]
    if core:
        result["core_concept"] = round(sum(v.scene.concept == s.concept for v, s in core) / len(core), 4)
    return result
