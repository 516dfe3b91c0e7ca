"""Means over the global batch, where each process sees a part of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def weights_of_means(counts: Tensor) -> Tensor:
    """What each process must multiply its means by, so that their mean over all processes is that of all elements.

    Processes average their gradients. Without the weights, an element would count the more the fewer of its kind its
    process has, and a run on eight GPUs would learn something else than one on a single GPU.

    Args:
        counts: Over how many elements this process took each of its means, (n,).

    Returns:
        The weights, (n,): ones in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return torch.ones_like(counts, dtype=torch.float32)
    total = counts.float()
    dist.all_reduce(total)
    return counts * dist.get_world_size() / total.clamp(min=1)
