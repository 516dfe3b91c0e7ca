"""Memory of the computer that a process needs beside that of its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from m2chat.models import mapped
from m2chat.models.absent import Absent
from m2chat.models.reading import ReadingModel
from m2chat.models.trainable import adapter_names
from m2chat.models.units import components

PROCESS = 0.5e9
"""Bytes of a process that has imported everything and read its configuration and data: measured, without CUDA."""
HALF, FULL = 2, 4
"""Bytes of a frozen weight in the published files, and of one in fp32."""
OPTIMIZER = 12
"""Bytes of a trained weight's gradient and two moments."""
READER = ("language model", "vision encoder", "visual query")
"""Networks that are lifted together or not at all, as `m2chat.models.build` does it; the others are the decoder's."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the computer's memory, of each process, at the worst moment.

    Args:
        process: Python, its libraries and the data.
        whole: Connector and adapter, which are never mapped, with gradients and moments where the CPU trains them.
        lifted: Frozen networks that are small enough to be lifted to fp32 at once.
        working: Activations, and the lifted copy of the weight at work, where the CPU computes.
        mapped: Files that are mapped: shared by all processes, and dropped and read again where memory is short.
    """

    process: float
    whole: float
    lifted: float
    working: float
    mapped: float

    @property
    def own(self) -> float:
        """What a process has to itself."""
        return self.process + self.whole + self.lifted + self.working


def plan_host(
    model: ReadingModel,
    on_cpu: bool,
    activations: Mapping[str, float],
    copies: int = 1,
    scores: bool = True,
    shared: float | None = None,
) -> HostMemory:
    """Adds up what a process needs.

    Args:
        model: Model of the plan, with the stage's parameters set to be trained, and none where it generates.
        on_cpu: Whether the CPU computes; if not, this is what there is before a GPU has taken it.
        activations: Bytes of activations at the worst moment of each component's work.
        copies: Copies of the adapter: two of weights of stage 2 that generate, which describe pictures as before their
            training.
        scores: Whether the language model's output table is used.
        shared: Where processes on CPUs share the frozen networks, bytes of what each of them keeps, gathers and
            computes; nothing is lifted then, and connector and adapter are in it.
    """
    files = float(HALF * sum(p.numel() for p in model.parameters()))
    if shared is not None and on_cpu:
        return HostMemory(PROCESS, 0.0, 0.0, shared, files)
    named = dict(model.named_parameters())
    adapter = set() if isinstance(model.llama, Absent) else adapter_names(model)
    adapter |= {name for name in named if name.endswith(".extra")}  # rows of the added tokens
    connector = [p for name, p in named.items() if name.startswith("m3adapter.")]
    kept = [named[name] for name in adapter] + connector
    whole = FULL * sum(p.numel() for p in connector) + FULL * copies * sum(named[name].numel() for name in adapter)
    trained = sum(p.numel() for p in kept if p.requires_grad)
    # Of a table some rows are read.
    unused = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if not (scores or isinstance(model.llama, Absent)):
        unused.add(id(model.llama.lm_head.weight))
    never_mapped = {id(p) for p in kept}
    lifted, working = 0.0, max(activations.values(), default=0.0)
    for of_reader in (True, False):
        parts = {
            name: [p for p in part.parameters() if id(p) not in never_mapped]
            for name, part in components(model).items()
            if (name in READER) is of_reader
        }
        count = sum(p.numel() for part in parts.values() for p in part)
        if HALF * count <= mapped.SETTLED:
            lifted += FULL * count
            continue
        for name, part in parts.items():
            largest = max((p.numel() for p in part if id(p) not in unused), default=0)
            working = max(working, activations.get(name, 0.0) + FULL * largest)
    return HostMemory(
        process=PROCESS,
        whole=float(whole + (OPTIMIZER * trained if on_cpu else 0)),
        lifted=lifted,
        working=working if on_cpu else 0.0,
        mapped=files - HALF * sum(p.numel() for p in kept),
    )
