"""What a training has cost, for Table 3: samples, and the time of its processes."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass
class Cost:
    """The cost of one stage so far; it goes into checkpoints, and on from there.

    Args:
        stage: Training stage.
        samples: Number of samples of all processes together, repetitions included.
        seconds: Wall time of each process, validation included.
        processes: Number of processes.
        device: Device of each process.
    """

    stage: str
    samples: int = 0
    seconds: float = 0.0
    processes: int = 1
    device: str = ""

    def start(self, processes: int, device: torch.device) -> None:
        """Starts the clock."""
        self.processes = processes
        on_gpu = device.type == "cuda"
        self.device = torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})"
        self._since = time.monotonic()

    def add(self, samples: int) -> None:
        """Counts the samples of a step of all processes, and the time that has passed."""
        now = time.monotonic()
        self.samples += samples
        self.seconds += now - self._since
        self._since = now

    def as_dict(self) -> dict[str, Any]:
        """Entry of a checkpoint."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}
