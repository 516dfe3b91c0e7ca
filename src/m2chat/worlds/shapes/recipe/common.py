"""What every pretraining recipe shares: pictures in bulk, the learning-rate curve, progress, saving."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2chat.pipeline.drawing import to_pictures
from m2chat.worlds.shapes.scenes import Scene, render, scenes_of_split
from m2chat.worlds.small_sdxl import decay_groups


def scene_pool(split: str, pairs: float, count: int, rng: random.Random) -> list[Scene]:
    """Draws scenes of a split with replacement.

    Args:
        split: ``train``, ``val`` or ``test``.
        pairs: Share of scenes of two objects, 0-1.
        count: Number of scenes.
        rng: Source of randomness.
    """
    singles, doubles = scenes_of_split(split, 1), scenes_of_split(split, 2)  # type: ignore[arg-type]
    return [rng.choice(doubles if rng.random() < pairs else singles) for _ in range(count)]


def draw(scenes: Iterable[Scene], seed: int) -> NDArray[np.uint8]:
    """Pictures of scenes: (B, H, W, 3), 0-255."""
    rng = np.random.default_rng(seed)
    return np.stack([render(scene, rng) for scene in scenes])


def stacked_pictures(pixels: Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) of 0-255."""
    return np.stack(to_pictures(pixels))


def adamw(modules: Iterable[nn.Module], lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW without decay on vectors."""
    return torch.optim.AdamW(decay_groups(modules, weight_decay), lr=lr, betas=(0.9, 0.98))


class Schedule:
    """Steps of a recipe: sets the learning rate (linear warm-up, then cosine to 2 %) and prints the losses.

    Args:
        name: Shown in front of every line.
        optimizer: Its groups' learning rate is set at every step.
        lr: Peak learning rate.
        steps: Number of steps.
        every: Steps between printed lines.
    """

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, lr: float, steps: int, every: int = 100) -> None:
        self.name, self.optimizer, self.lr, self.steps, self.every = name, optimizer, lr, steps, every

    def __iter__(self) -> Iterator[int]:
        self._start, self._losses = time.process_time(), []  # type: ignore[var-annotated]
        for step in range(self.steps):
            warm = min(1.0, (step + 1) / 100)
            cosine = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / self.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * warm * float(cosine)
            yield step
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                seconds = time.process_time() - self._start
                mean = np.mean(self._losses[-self.every :])
                print(f"{self.name} {step + 1}/{self.steps} loss {mean:.4f} cpu {seconds:.0f} s", flush=True)

    def step(self, loss: Tensor) -> None:
        """Backward, clip, update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self._losses.append(float(loss.detach()))


def seed_everything(seed: int) -> random.Random:
    """Seeds torch and returns a generator for everything else."""
    torch.manual_seed(seed)
    return random.Random(seed)


def save_half(model: nn.Module, folder: Path) -> None:
    """Saves a transformers or diffusers model as fp16 safetensors and leaves it in fp32, with the saved values.

    Whatever is trained on top from here on then sees the very numbers that the files hold.
    """
    model.half().save_pretrained(folder)  # type: ignore[operator]
    model.float()
