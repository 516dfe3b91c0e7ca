"""Data sheets of the GPUs that a plan can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from m2chat.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits, as its maker states them.

    Args:
        flops: Dense bf16 multiplications and additions a second.
        memory: Bytes a second between the chip and its memory.
        link: Bytes a second to the other GPUs of the machine, in one direction.
    """

    flops: float
    memory: float
    link: float


GPUS = {
    "a100": Gpu(312e12, 2.04e12, 300e9),
    "h100": Gpu(989e12, 3.35e12, 450e9),
    "h800": Gpu(989e12, 3.35e12, 200e9),
    "h200": Gpu(989e12, 4.8e12, 450e9),
}
"""NVIDIA's data sheets of the SXM cards; the paper trained on H800."""


def gpu_named(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UserError: If it is not known.
    """
    if name not in GPUS:
        raise UserError(f"--gpu {name}: choose one of {', '.join(sorted(GPUS))}")
    return GPUS[name]
