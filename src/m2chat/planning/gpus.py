"""Data sheets of the GPUs that a plan can be made for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from m2chat.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits, as its maker states them.

    Args:
        flops: Dense bf16 multiplications and additions a second, summed in fp32.
        memory: Bytes a second between the chip and its memory.
        link: Bytes a second to the other GPUs of the machine, in one direction.
        size: Bytes of its memory, with 10^9 in a GB.
        names: Pattern of the names that its driver gives it.
    """

    flops: float
    memory: float
    link: float
    size: float = 80e9
    names: str = ""


_PCIE_4, _PCIE_5 = 32e9, 64e9
GPUS = {
    "l4": Gpu(121e12, 0.30e12, _PCIE_4, 24e9, r"NVIDIA L4"),
    "a10": Gpu(125e12, 0.60e12, _PCIE_4, 24e9, r"NVIDIA A10"),
    "rtx3090": Gpu(71e12, 0.936e12, _PCIE_4, 24e9, r"NVIDIA GeForce RTX 3090"),
    "rtx4090": Gpu(165e12, 1.008e12, _PCIE_4, 24e9, r"NVIDIA GeForce RTX 4090"),
    "a100-40": Gpu(312e12, 1.555e12, 300e9, 40e9, r"NVIDIA A100-SXM4-40GB"),
    "a6000": Gpu(155e12, 0.768e12, _PCIE_4, 48e9, r"NVIDIA RTX A6000"),
    "l40s": Gpu(362e12, 0.864e12, _PCIE_4, 48e9, r"NVIDIA L40S"),
    "a100": Gpu(312e12, 2.04e12, 300e9, 80e9, r"NVIDIA A100-SXM4-80GB"),
    "a100-pcie": Gpu(312e12, 1.935e12, _PCIE_4, 80e9, r"NVIDIA A100 80GB PCIe"),
    "h100": Gpu(989e12, 3.35e12, 450e9, 80e9, r"NVIDIA H100( 80GB HBM3)?"),
    "h100-pcie": Gpu(756e12, 2.0e12, _PCIE_5, 80e9, r"NVIDIA H100 PCIe"),
    "h800": Gpu(989e12, 3.35e12, 200e9, 80e9, r"NVIDIA H800( 80GB HBM3)?"),
    "h200": Gpu(989e12, 4.8e12, 450e9, 141e9, r"NVIDIA H200"),
}
"""NVIDIA's data sheets: SXM cards where the name does not say otherwise; the paper trained on H800."""
SIZES = tuple(sorted({gpu.size for gpu in GPUS.values()}))
"""Sizes of the cards' memories, in bytes."""


def gpu_named(name: str) -> Gpu:
    """A GPU by its name.

    Raises:
        UserError: If it is not known.
    """
    if name not in GPUS:
        raise UserError(f"--gpu {name}: choose one of {', '.join(sorted(GPUS))}")
    return GPUS[name]


def gpu_of_driver(name: str) -> Gpu | None:
    """A GPU by the name that its driver gives it, such as ``NVIDIA H100 PCIe``; None if its limits are not known."""
    return next((gpu for gpu in GPUS.values() if re.fullmatch(gpu.names, name)), None)
