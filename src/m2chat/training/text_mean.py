"""L_text over the global batch, by tokens or by replies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from m2chat.losses import text_loss
from m2chat.schema import Batch
from m2chat.training.global_batch import weights_of_means

TextMean = Literal["tokens", "replies"]
"""Whether every token counts the same, or every reply: among tokens short replies of text alone hardly count."""


def global_text_loss(batch: Batch, logits: Tensor, labels: Tensor, mean: TextMean) -> Tensor:
    """L_text of a pass, so weighted that its mean over all processes is that over the global batch.

    Args:
        batch: What was read.
        logits: At its scored positions, in their order, (scored, V).
        labels: The tokens that stand there, (scored,).
        mean: Over what.
    """
    replies = (batch.labels[:, 1:] >= 0).nonzero()[:, 0] if mean == "replies" else None
    count = len(labels) if replies is None else len(replies.unique())
    return text_loss(logits, labels, replies) * weights_of_means(torch.tensor([count], device=labels.device))[0]
