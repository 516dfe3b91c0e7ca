"""The feature network of ``fid_pocket``: a small classifier of concept, style and attributes at 64 x 64."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.metrics.feature_net import FeatureNet
from m2chat.worlds.emoji.judge import VALUES
from m2chat.worlds.emoji.recipe.course import Course, Plan
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.recipe.vae import picture_weights
from m2chat.worlds.emoji.scenes import SIZE, Pictures
from m2chat.worlds.small_sdxl import to_pixels

PLAN = Plan(steps=1500, lr=2e-3, warmup=200, decay=700, ema=0.995)
FEATURES = 96
_NOISE = 0.05
"""Keeps the features from hanging on single pixels, which generated pictures get slightly wrong."""


def train_fid(
    pictures: Pictures, out: Path, plan: Plan = PLAN, batch: int = 64, seed: int = 0, device: str = "auto"
) -> bool:
    """Trains the network and saves it into ``<out>/weights/fid``.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Whether the plan's end was reached.
    """
    torch.manual_seed(seed)
    where, seen = device_of(device), pictures.of("train")
    values = {"concept": pictures.concepts, **VALUES}
    net = FeatureNet({name: len(known) for name, known in values.items()}, FEATURES, size=SIZE)
    net = net.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    course = Course(out / "fid", {"net": net}, plan, seed, {"concepts": len(pictures.concepts), "features": FEATURES})
    weights = [weight**0.5 for weight in picture_weights(seen)]
    codes = {name: {value: i for i, value in enumerate(known)} for name, known in values.items()}
    wanted = {name: torch.tensor([codes[name][s.attributes[name]] for s in seen.scenes]) for name in values}
    net.train()

    def loss_of(rng: random.Random) -> Tensor:
        chosen = rng.choices(range(len(seen)), weights, k=batch)
        pixels = to_pixels(seen.pixels[chosen])
        pixels = (pixels + _NOISE * torch.randn_like(pixels)).to(where, memory_format=torch.channels_last)
        with precision(where):
            logits = net(pixels)
            return torch.stack([F.cross_entropy(logits[name], wanted[name][chosen].to(where)) for name in values]).sum()

    finished = course.run(loss_of, None, every=100)
    with course.averaged():
        net.save(out / "weights" / "fid")
    return finished


@torch.no_grad()
def measure_saved(pictures: Pictures, folder: Path) -> dict[str, object]:
    """Shares of attributes that the network names right, in pictures seen and in held-out (concept, style) pairs."""
    net, values = FeatureNet.load(folder), {"concept": pictures.concepts, **VALUES}
    result: dict[str, object] = {}
    for suffix, of in (("", pictures.of("train")), ("_unseen_pairs", pictures.of("pair"))):
        of = of.take(range(0, len(of), 1 + len(of) // 1000))
        logits = net(to_pixels(of.pixels))
        for name, known in values.items():
            read = [known[i] for i in logits[name].argmax(1).tolist()]
            right = [value == scene.attributes[name] for value, scene in zip(read, of.scenes, strict=True)]
            result[f"{name}{suffix}"] = round(sum(right) / len(right), 4)
    return result
