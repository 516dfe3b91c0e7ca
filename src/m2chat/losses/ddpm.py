"""L_ddpm (Eq. 5)."""

from __future__ import annotations

from torch import Tensor

from m2chat.losses.align import masked_mean_square


def ddpm_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5: mean squared error of the UNet's output.

    Args:
        prediction: (n, c, h, w).
        target: The noise or the velocity, as the scheduler's `prediction_type` says.
        mask: Samples that have a picture to draw, (n,).
    """
    return masked_mean_square(prediction - target, mask)
