"""A short name of a network's tensors, at the cost of a few pages of its file.

Values are samples: all of a small tensor, four runs of 256 of a large one, as fp16. Training moves all tensors of a
network, or adds some, so that a few values of each tell two networks apart; four runs are four pages of a mapped file,
2 MB of LLaMA-7B's 13.5 GB. In fp16 the half-precision copy of a network, which is rounded in the same way, has the name
of the original. Damage is what checksums are for (`m2chat.integrity`). Marks of adapter files hold another kind of
fingerprint (`m2chat.models.weights.base`).
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
    with _at_random(values):
        return _runs(values)


def _runs(values: Tensor) -> Tensor:
    starts = [index * (len(values) - _RUN) // (_RUNS - 1) for index in range(_RUNS)]
    return torch.cat([values[start : start + _RUN] for start in starts])


@contextmanager
def _at_random(values: Tensor) -> Iterator[None]:
    """A block in which the kernel reads a mapped tensor's pages one by one.

    By itself it reads ahead of each: 128 kB by default, 8 MB where it is set so, which would be most of a large file.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_RANDOM") else None
    if advise is None:  # not Linux
        yield
        return
    start = -(-values.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = values.data_ptr() + values.nbytes - start
    try:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), mmap.MADV_RANDOM)
        yield
    finally:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), mmap.MADV_NORMAL)
