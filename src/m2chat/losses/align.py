"""L_align (Eq. 2)."""

from __future__ import annotations

from torch import Tensor


def masked_mean_square(error: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over all elements of the samples that count: 0, with a gradient path, if none does.

    Args:
        error: (B, ...).
        mask: (B,) bool.
        weights: Of each sample's part in the mean, (B,); None for one.
    """
    per_sample = error.float().square().flatten(1).mean(1)
    counts = mask.to(per_sample.dtype)
    own = counts if weights is None else counts * weights
    return (per_sample * own).sum() / counts.sum().clamp(min=1)


def align_loss(
    h_align: Tensor,
    e_clip: Tensor,
    h_palign: Tensor | None,
    e_pclip: Tensor | None,
    mask: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Eq. 2 with both terms squared: as printed, the second has no lower bound, and the text says MSE.

    Args:
        h_align: (B, Q, C).
        e_clip: (B, Q, C).
        h_palign: (B, P), or None for a decoder without a pooled condition.
        e_pclip: (B, P) or None.
        mask: Samples that have a picture to draw, (B,).
        weights: Of each sample, (B,); None for one.
    """
    loss = masked_mean_square(h_align - e_clip, mask, weights)
    if h_palign is not None and e_pclip is not None:
        loss = loss + masked_mean_square(h_palign - e_pclip, mask, weights)
    return loss
