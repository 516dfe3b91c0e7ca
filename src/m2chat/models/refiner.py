"""SDXL's refiner (Fig. 2): a second UNet that takes over the last steps of a drawing.

It was trained on low noise alone and on the second text encoder alone, with an aesthetic score among its numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Aesthetic scores of the positive and of the negative condition, as in diffusers."""


class Refiner(nn.Module):
    """UNet and scheduler of the refiner, and the form in which it takes a condition.

    Args:
        unet: UNet.
        scheduler: Scheduler that draws.
        start: Share of the noise schedule, 0-1, after which it takes over; the base ends there.
        zeros: Whether its negative condition is zeros; else it is the encoding of the empty prompt, as SDXL's refiner
            was trained (`force_zeros_for_empty_prompt` of its ``model_index.json``).
    """

    def __init__(self, unet: Any, scheduler: Any, start: float, zeros: bool = True) -> None:
        super().__init__()
        self.unet, self.scheduler, self.start, self.zeros = unet, scheduler, start, zeros

    def condition(
        self, h_align: Tensor, h_palign: Tensor, time_ids: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """What its UNet takes.

        Args:
            h_align: (B, Q, C) of the base: of both text encoders, the second one's behind.
            h_palign: (B, P).
            time_ids: (B, 6) of the base.

        Returns:
            The positive condition: (B, Q, width of the second text encoder), (B, P) and (B, 5); and the numbers of the
            negative one, (B, 5).
        """
        text = h_align[..., -int(self.unet.config.cross_attention_dim) :]
        positive, negative = (
            torch.cat([time_ids[:, :4], time_ids.new_full((len(time_ids), 1), score)], 1)
            for score in (SCORE, NEGATIVE_SCORE)
        )
        return (text, h_palign, positive), negative


def steps_before(scheduler: Any, start: float) -> int:
    """Count of a scheduler's timesteps that lie before the split: the base's, while the rest is the refiner's.

    As in diffusers' `denoising_end` and `denoising_start`: the split is a timestep of the training's schedule. A method
    of second order has each timestep but the first one twice and is never cut between the two.

    Args:
        scheduler: Scheduler whose timesteps are set.
        start: Share of the noise schedule, 0-1, after which the refiner takes over.
    """
    total = int(scheduler.config.num_train_timesteps)
    cutoff = round(total - start * total)
    behind = int((scheduler.timesteps < cutoff).sum())
    if scheduler.order == 2 and behind % 2 == 0:
        behind += 1
    return len(scheduler.timesteps) - behind
