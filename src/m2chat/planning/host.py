"""Memory of the computer that a process needs beside that of its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

PROCESS = 0.75e9
"""Bytes of a process that has imported everything and read its configuration and data: measured, without CUDA."""
LIFTED = 1 << 30
"""Bytes in its files up to which a network is lifted to fp32 at once on a CPU; larger ones stay mapped to them."""
HALF = 2
"""Bytes of a frozen weight in the published files."""
TRAINED = {"cpu": 16, "gpu": 4}
"""Bytes of a trained weight in fp32, on a CPU with its gradient and two moments."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the computer's memory, of each process.

    Args:
        process: Python, its libraries and the data.
        trained: What is trained, with gradients and moments where it is trained on the CPU.
        lifted: Frozen networks that are lifted to fp32.
        working: Activations, and the lifted copy of the weight at work, where the CPU computes.
        mapped: Files that are mapped: shared by all processes, and dropped and read again where memory is short.
    """

    process: float
    trained: float
    lifted: float
    working: float
    mapped: float

    @property
    def own(self) -> float:
        """What a process has to itself."""
        return self.process + self.trained + self.lifted + self.working


def plan_host(parts: Mapping[str, nn.Module], on_cpu: bool, activations: float) -> HostMemory:
    """Adds up what a process needs.

    Args:
        parts: Components of the model, with the stage's parameters set to be trained.
        on_cpu: Whether the CPU trains, and not a GPU.
        activations: Bytes of activations at the worst moment.
    """
    trained = sum(p.numel() for part in parts.values() for p in part.parameters() if p.requires_grad)
    frozen = {name: sum(p.numel() for p in part.parameters() if not p.requires_grad) for name, part in parts.items()}
    small = sum(count for count in frozen.values() if HALF * count <= LIFTED)
    large = [p.numel() for name, part in parts.items() if HALF * frozen[name] > LIFTED for p in part.parameters()]
    return HostMemory(
        process=PROCESS,
        trained=float(TRAINED["cpu" if on_cpu else "gpu"] * trained),
        lifted=4.0 * small if on_cpu else 0.0,
        working=activations + 4.0 * max(large, default=0) if on_cpu else 4.0 * max(large, default=0),
        mapped=float(HALF * sum(frozen.values())),
    )
