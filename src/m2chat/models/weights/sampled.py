"""A short name of a network's tensors, at the cost of a few pages of its file.

Values are samples: all of a small tensor, four runs of 256 of a large one, as fp16. Training moves all tensors of a
network, or adds some, so that a few values of each tell two networks apart; four runs are four pages of a mapped file,
5 MB of LLaMA-7B's 13.5 GB. In fp16 the half-precision copy of a network, which is rounded in the same way, has the name
of the original. Damage is what checksums are for (`m2chat.integrity`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_RUN, _RUNS = 256, 4


def tensor_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short name of tensors; they may be mapped from a file, of which a few pages are read.

    Args:
        state: Tensors by name, in any precision.
    """
    digest = hashlib.sha256()
    # Versions of the libraries write tables that can be computed, and a prefix, or do not.
    plain = {
        name.removeprefix("text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith(("position_ids", "rotary_emb.inv_freq"))
    }
    for name, tensor in sorted(plain.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(_sample(tensor).to(torch.float32).to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    if len(values) <= _RUN * _RUNS:
        return values
    starts = [index * (len(values) - _RUN) // (_RUNS - 1) for index in range(_RUNS)]
    return torch.cat([values[start : start + _RUN] for start in starts])
