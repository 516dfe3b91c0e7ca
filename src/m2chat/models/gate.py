"""The gate between the text branch and the image branch (Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.models.config import GateConfig


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states where the mask is true, zeros where it is nowhere true: (B, T, D) and (B, T) to (B, D)."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class Gate(nn.Module):
    """One number g a sample: f_fus = (1 - g) * A_img + g * A_h.

    Args:
        config: Mode and value.
    """

    def __init__(self, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        # The M³FT factor. These values keep g within 0.05 of the paper's clamped cosine on [0.1, 0.9].
        # One-element vectors, because FSDP2 refuses parameters without a dimension.
        self.slope = nn.Parameter(torch.tensor([4.9]))
        self.bias = nn.Parameter(torch.tensor([-2.45]))
        self.requires_grad_(config.mode == "learnable")

    def forward(
        self, states: Tensor, answer_mask: Tensor, caption_mask: Tensor, has_context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gate and the cosine that it follows.

        Args:
            states: States of the language model, (B, T, D).
            answer_mask: (B, T).
            caption_mask: (B, T).
            has_context: (B,).

        Returns:
            g in [0, 1] and c in [-1, 1], both (B,) in fp32. g is 1 where there is no answer or no context picture.
        """
        # Kept in fp32 and cut from the gradient: the states should not be bent to open a gate.
        fixed = states.detach().float()
        cosine = F.cosine_similarity(masked_mean(fixed, answer_mask), masked_mean(fixed, caption_mask), dim=-1)
        mode = self.config.mode
        if mode == "paper":
            gate = cosine.clamp(0, 1)
        elif mode == "learnable":
            gate = torch.sigmoid(self.slope.float() * cosine + self.bias.float())
        else:
            gate = torch.full_like(cosine, self.config.value if mode == "constant" else 1.0)
        applies = has_context & answer_mask.any(1)
        return torch.where(applies, gate, torch.ones_like(gate)), cosine
