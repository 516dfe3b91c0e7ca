"""Cards: known by the names of their drivers, and never taken for a faster one."""

from __future__ import annotations

import pytest

from m2chat.errors import UserError
from m2chat.planning.gpus import GPUS, SIZES, gpu_named, gpu_of_driver


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_names_of_drivers(name: str, key: str | None) -> None:
    assert gpu_of_driver(name) == (None if key is None else GPUS[key])


def test_sizes_of_cards() -> None:
    assert SIZES == (24e9, 40e9, 48e9, 80e9, 141e9)
    with pytest.raises(UserError, match="--gpu tpu: choose one of a10, a100, a100-40"):
        gpu_named("tpu")
