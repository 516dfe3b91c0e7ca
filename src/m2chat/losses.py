"""The three losses: L_align (Eq. 2), L_ddpm (Eq. 5) and L_text (Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _masked_mean_square(error: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square of the samples in a mask: 0, with a gradient path, if there are none.

    Args:
        error: Differences in fp32, (B, ...).
        mask: Samples that count, (B,) bool.
        weights: Weight of each sample in the mean, (B,); None for 1.
    """
    per_sample = error.square().flatten(1).mean(1)
    counts = mask.to(per_sample.dtype)
    weighted = counts if weights is None else counts * weights
    return (per_sample * weighted).sum() / counts.sum().clamp(min=1)


def align_loss(
    h_align: Tensor,
    e_clip: Tensor,
    h_palign: Tensor | None,
    e_pclip: Tensor | None,
    mask: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """L_align, Eq. 2 with both terms squared: as printed, the second has no lower bound, and the text says MSE.

    Args:
        h_align: Condition that the M³Adapter predicts, (B, Q, C).
        e_clip: Condition of the image decoder's text encoders for the caption, (B, Q, C).
        h_palign: Predicted pooled condition, (B, P), or None for an image decoder without one.
        e_pclip: Pooled condition of the text encoders, (B, P), or None.
        mask: Samples that have a picture to draw, (B,) bool.
        weights: Weight of each sample in the mean, (B,); None for 1.
    """
    loss = _masked_mean_square(h_align.float() - e_clip.float(), mask, weights)
    if h_palign is not None and e_pclip is not None:
        loss = loss + _masked_mean_square(h_palign.float() - e_pclip.float(), mask, weights)
    return loss


def ddpm_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L_ddpm, Eq. 5: mean squared error of the UNet's output.

    Args:
        prediction: Output of the UNet, (n, c, h, w).
        target: Noise or velocity, by the scheduler's `prediction_type`, (n, c, h, w).
        mask: Samples that have a picture to draw, (n,) bool.
    """
    return _masked_mean_square(prediction.float() - target.float(), mask)


def text_loss(logits: Tensor, labels: Tensor, replies: Tensor | None = None, count: int | None = None) -> Tensor:
    """L_text, Eq. 7: cross-entropy of the reply's tokens, as their mean or as the mean over replies of their means.

    Args:
        logits: Logits at the scored positions, (scored, V).
        labels: Token at each of these positions, (scored,).
        replies: Number of the reply that each token belongs to, (scored,); None for the mean over tokens.
        count: A number that is above all of those; None looks for it, for which a GPU has to be waited.
    """
    if replies is None:
        return F.cross_entropy(logits.float(), labels)
    count = int(replies.max()) + 1 if count is None else count
    lengths = replies.new_zeros(count).index_add(0, replies, torch.ones_like(replies))
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    return (each / lengths[replies]).sum() / lengths.count_nonzero()
