"""L_text (Eq. 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def text_loss(logits: Tensor, labels: Tensor, replies: Tensor | None = None) -> Tensor:
    """Cross-entropy of the response's tokens: their mean, or the mean over replies of each reply's mean.

    Args:
        logits: At the scored positions, (scored, V).
        labels: The tokens that stand there, (scored,).
        replies: Number of the reply that each belongs to, (scored,); None for the mean over tokens.
    """
    if replies is None:
        return F.cross_entropy(logits.float(), labels)
    lengths = replies.bincount()
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    return (each / lengths[replies]).sum() / lengths.count_nonzero()
