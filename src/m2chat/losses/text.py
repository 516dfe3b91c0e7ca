"""L_text (Eq. 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def text_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the response's tokens.

    Args:
        logits: At the scored positions, (scored, V).
        labels: The tokens that stand there, (scored,).
    """
    return F.cross_entropy(logits.float(), labels)
