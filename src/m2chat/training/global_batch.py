"""Means over the global batch, of which each process has a part."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from m2chat.losses import text_loss
from m2chat.schema import Batch

TextMean = Literal["tokens", "replies"]
"""Whether every token has the same weight, or every reply: among tokens, short replies have little."""


def weights_of_means(counts: Tensor) -> Tensor:
    """Factors of a process's means, so that their mean over all processes is the mean of all elements.

    Processes average their gradients. Without the weights, an element would count the more the fewer of its kind its
    process has, and a run on eight GPUs would differ from one on a single GPU.

    Args:
        counts: Number of elements of each mean in this process, (n,).

    Returns:
        Factor of each mean, (n,): ones in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return torch.ones_like(counts, dtype=torch.float32)
    total = counts.float()
    dist.all_reduce(total)
    return counts * dist.get_world_size() / total.clamp(min=1)


def global_text_loss(batch: Batch, logits: Tensor, labels: Tensor, mean: TextMean) -> Tensor:
    """L_text of a pass, weighted so that its mean over all processes is that over the global batch.

    Args:
        batch: Batch that the language model has read.
        logits: Logits at its scored positions, in their order, (scored, V).
        labels: Token at each of these positions, (scored,).
        mean: Elements of the mean: tokens or replies.
    """
    places = batch.located()
    replies = places.row if mean == "replies" else None
    count = len(labels) if replies is None else places.replies
    weight = weights_of_means(torch.full((1,), count, device=labels.device))[0]
    return text_loss(logits, labels, replies, len(batch)) * weight
