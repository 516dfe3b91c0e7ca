"""From tensors on disk to a network, through the meta device: no parameter is ever allocated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.models.mapped import mapped

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class KeyReport:
    """What became of the names of a file.

    Args:
        used: Names of tensors that fill the network.
        missing: Names of the network that the file lacks.
        unexpected: Names of the file that the network has no place for.
        ignored: Names of the file that are known to be of no use.
        misshapen: Names whose tensors have another shape than the network's, with both shapes.
    """

    used: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)


def compare(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: Iterable[str] = ()) -> KeyReport:
    """Holds the tensors of a file against those of a network."""
    used = sorted(actual.keys() & expected.keys())
    shapes = [(name, tuple(actual[name].shape), tuple(expected[name].shape)) for name in used]
    return KeyReport(
        used,
        sorted(expected.keys() - actual.keys()),
        sorted(actual.keys() - expected.keys()),
        sorted(ignored),
        [f"{name} is {shape} and should be {wanted}" for name, shape, wanted in shapes if shape != wanted],
    )


def require(report: KeyReport, where: str, remedy: str) -> None:
    """Makes sure that nothing is missing, too much, or of another shape.

    Raises:
        UserError: That counts and names what is wrong.
    """
    faults = [
        f"{len(names):,} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", report.missing),
            ("unexpected", report.unexpected),
            ("of another shape", report.misshapen),
        )
        if names
    ]
    if faults:
        raise UserError(f"{where}: its tensors are not the expected ones: {'; '.join(faults)}. {remedy}")


def on_meta(make: Callable[[], Module]) -> Module:
    """Builds a network without memory for its parameters."""
    with torch.device("meta"):
        return make()


def fill(
    module: Module, state: dict[str, Tensor], where: str, dtype: torch.dtype | None = None, copy: bool = False
) -> Module:
    """Puts tensors in the places of a network's parameters that are on the meta device.

    Args:
        module: Built by `on_meta`.
        state: A tensor for each name, no more and no fewer; it is emptied on the way.
        where: Name of their source in messages.
        dtype: Precision of the network; None keeps each tensor's. All tensors stay mapped to their file: those of
            another precision as `m2chat.models.mapped`, which the caller settles.
        copy: Whether the network gets separate memory, because it will be trained.

    Returns:
        The network.

    Raises:
        UserError: If a name is missing or too much, or a shape differs.
    """
    parameters = module.state_dict()
    require(compare(state, parameters), where, "Is it the right file, whole, and of the right network?")
    ready: dict[str, Tensor] = {}
    while state:  # given up one by one: what had to be re-ordered on the way is in memory
        name, tensor = state.popitem()
        wanted = dtype or tensor.dtype
        ready[name] = tensor.to(wanted, copy=True) if copy else mapped(tensor, wanted)
    module.load_state_dict(ready, assign=True)
    restore_buffers(module)
    return module


def restore_buffers(module: nn.Module) -> None:
    """Computes the buffers that no file holds and the meta device left empty."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.device.type != "meta":
                continue
            if name == "position_ids":
                value = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            elif name in ("inv_freq", "original_inv_freq"):
                value = type(part)(part.config).get_buffer(name)
            else:
                raise RuntimeError(f"no file holds the buffer {name} of {type(part).__name__}")
            part.register_buffer(name, value, persistent=False)
