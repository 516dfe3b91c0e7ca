"""The global batch, of which each process has a part: its size, and means over it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.losses import text_loss

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


def settle_global_batch(trainer: Trainer, batch_size: int, wanted: int | None) -> None:
    """Makes the samples of an optimiser step as many as a configuration names, by accumulation, and prints how many.

    A recipe's learning rate belongs to its number of samples a step; on fewer devices there would silently be fewer.

    Args:
        trainer: Trainer, whose accumulation is set.
        batch_size: Samples of a batch of a device.
        wanted: Samples of a step; None for what comes out.

    Raises:
        UserError: If the batches of all devices do not add up to it, or the accumulation that is set does not.
    """
    together, accumulated = batch_size * trainer.world_size, int(trainer.accumulate_grad_batches)
    devices = f"{trainer.world_size} device{'s' if trainer.world_size > 1 else ''}"
    if wanted is not None and accumulated * together != wanted:
        if accumulated > 1 or wanted % together:
            by = f", accumulated over {accumulated} batches" if accumulated > 1 else ""
            fitting = [n for n in range(1, wanted + 1) if wanted % (n * trainer.world_size) == 0]
            smaller = max((n for n in fitting if n <= batch_size), default=None)
            remedy = f"set data.batch_size to {smaller}, or " if smaller is not None and accumulated == 1 else ""
            remedy += "leave trainer.accumulate_grad_batches out, or " if accumulated > 1 else ""
            raise UserError(
                f"data.global_batch={wanted}: {batch_size} samples (data.batch_size) on each of {devices}{by} are "
                f"{accumulated * together} a step: {remedy}set data.global_batch to {accumulated * together} and the "
                "learning rate to what goes with it (null takes what comes out)"
            )
        accumulated = trainer.accumulate_grad_batches = wanted // together
    over = f", accumulated over {accumulated} batches" if accumulated > 1 else ""
    rank_zero_info(f"A step has {accumulated * together} samples: {batch_size} on each of {devices}{over}.")
