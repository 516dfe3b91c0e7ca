"""How pictures are drawn: settings, the seed of a picture's noise, and pixels as pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from m2chat.models.schedulers import DEFAULT_GUIDANCE, DEFAULT_STEPS, Interval
from m2chat.schema import Picture


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn.

    Args:
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        seed: Seed; together with a picture's name it decides its noise.
        size: Side of the pictures in pixels, where `height` or `width` is None.
        preview_every: Denoising steps between two previews while a reply is streamed; 0 for none.
        height: Height of the pictures in pixels.
        width: Width of the pictures in pixels.
        guidance_interval: Two shares of the noise schedule, 0-1, between which guidance acts; None for those of the
            image decoder.
        negative_prompt: Text away from which guidance leads; None for the negative condition of the image decoder.
    """

    steps: int = DEFAULT_STEPS
    guidance: float = DEFAULT_GUIDANCE
    seed: int = 0
    size: int = 32
    preview_every: int = 0
    height: int | None = None
    width: int | None = None
    guidance_interval: Interval | None = None
    negative_prompt: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        height, width = (self.size if side is None else side for side in (self.height, self.width))
        return height, width


def noise_seed(seed: int, name: str) -> int:
    """The seed of one picture's noise, 0 to 2**63 - 1: it depends on the picture's name, never on its batch or rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def to_pictures(pixels: Tensor) -> list[Picture]:
    """(B, 3, H, W) in [-1, 1] to RGB pictures (H, W, 3) of 0-255."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [np.asarray(picture) for picture in scaled]
