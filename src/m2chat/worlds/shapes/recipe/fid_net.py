"""The feature network of ``fid_micro``: a small classifier of attributes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.metrics.feature_net import FeatureNet
from m2chat.worlds.shapes.recipe.attributes import VALUES
from m2chat.worlds.shapes.recipe.common import Schedule, adamw, draw, scene_pool, seed_everything
from m2chat.worlds.shapes.recipe.text_encoders import classes
from m2chat.worlds.shapes.scenes import ATTRIBUTES, Scene
from m2chat.worlds.small_sdxl import to_pixels


def train_fid_net(folder: Path, steps: int = 1200, batch: int = 64, seed: int = 0) -> dict[str, object]:
    """Trains and saves the network.

    Returns:
        Seed, steps and the share of held-out pictures whose every attribute it names.
    """
    rng = seed_everything(seed)
    net = FeatureNet({name: len(VALUES[name]) + 1 for name in ATTRIBUTES})
    scenes = scene_pool("train", 0.5, 12000, rng)
    pixels, targets = to_pixels(draw(scenes, seed)), _targets(scenes)
    schedule = Schedule("fid net", adamw([net], 2e-3), 2e-3, steps)
    for _ in schedule:
        chosen = torch.randint(len(pixels), (batch,))
        # Noise keeps the features from hanging on single pixels, which generated pictures get slightly wrong.
        logits = net(pixels[chosen] + 0.05 * torch.randn_like(pixels[chosen]))
        losses = [F.cross_entropy(logits[name], targets[chosen, i]) for i, name in enumerate(ATTRIBUTES)]
        schedule.step(sum(losses, start=torch.zeros(())) / len(losses))
    net.save(folder)
    return {"seed": seed, "steps": steps, **measure_fid_net(net)}


@torch.no_grad()
def measure_fid_net(net: FeatureNet) -> dict[str, object]:
    """Share of held-out pictures whose every attribute it names."""
    scenes = scene_pool("test", 0.5, 500, seed_everything(1))
    logits = net(to_pixels(draw(scenes, 1)))
    read = torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], 1)
    return {"all_attributes_named": round(float((read == _targets(scenes)).all(1).float().mean()), 4)}


def _targets(scenes: list[Scene]) -> Tensor:
    return torch.tensor([classes(scene.attributes) for scene in scenes])


def measure_saved(folder: Path) -> dict[str, object]:
    """Measures the network of a folder."""
    return measure_fid_net(FeatureNet.load(folder))
