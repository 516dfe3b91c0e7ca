"""Where a recipe computes, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def device_of(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 (AVX-512 BF16, AMX), without which bf16 is several times slower."""
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.7 has no such list yet
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextlib.contextmanager
def precision(device: torch.device) -> Iterator[None]:
    """bf16 on a GPU and on a CPU that multiplies in it, else fp32."""
    if device.type == "cuda":
        with torch.autocast("cuda", torch.bfloat16):
            yield
    elif multiplies_bf16():
        # The fused attention's backward pass in bf16 takes ten times that of plain products, a third of a UNet's step.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
