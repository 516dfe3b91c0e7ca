"""Weights that stay in their file until an operation needs them, in whatever precision and layout they lie there.

A network at the paper's scale in half precision is 13.5 GB of file, and 27 GB of memory once it is lifted to fp32 for a
processor that computes in nothing else. A `MappedTensor` has the shape and the precision of the lifted weight, and no
memory: each operation lifts what it works on, and drops it behind. The numbers are those of lifting everything first,
in the backward pass too, which keeps the weight and not its lifted copy. Moved to another device it becomes an ordinary
tensor there, so that a model goes from its files to a GPU one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from m2chat.host_memory import return_large_blocks

SETTLED = 1 << 30
"""Bytes in their files up to which mapped weights are lifted at once: small networks compute faster so."""
_SMALL = 1 << 15
"""Bytes of a tensor that is not worth mapping: norms and biases."""
LIFTED_BLOCK = 1 << 18
"""Size in bytes from which a dropped copy of weights goes back to the system at once."""
_ATEN = torch.ops.aten


class MappedTensor(Tensor):
    """A tensor of one precision whose numbers lie in another one, or in another order of rows.

    It is read-only: to change it is an error, since its file is no place to write to.

    Args:
        source: The numbers, usually mapped from a file; reshaped they have the shape.
        shape: Shape.
        dtype: Precision in which operations see it.
        turned: Whether it is the transpose of the source.
    """

    source: Tensor
    turned: bool
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[MappedTensor], source: Tensor, shape: torch.Size, dtype: torch.dtype, turned: bool = False
    ) -> MappedTensor:
        """A tensor without memory."""
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=source.device)  # type: ignore[attr-defined]
        return made  # type: ignore[no-any-return]

    def __init__(self, source: Tensor, shape: torch.Size, dtype: torch.dtype, turned: bool = False) -> None:
        self.source, self.turned = source, turned

    @property
    def data(self) -> Tensor:
        """As of any tensor."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        """Gives it other numbers: ordinary ones, as `Module.to` brings from another device, make it an ordinary tensor.

        The identity stays, so that a module and an optimiser still know it.
        """
        made = nn.Parameter(value, self.requires_grad) if isinstance(self, nn.Parameter) else value.detach()
        torch.utils.swap_tensors(self, made)

    def lifted(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The ordinary tensor.

        Args:
            dtype: Precision; None for its own.
            device: Device, on which the precision is changed; None for that of the source.
        """
        value = self.source.to(device or self.source.device).to(dtype or self.dtype)
        return value.reshape(self.shape[::-1]).t() if self.turned else value.reshape(self.shape)

    def seen_as(self, dtype: torch.dtype) -> MappedTensor:
        """The same numbers for operations in another precision."""
        return MappedTensor(self.source, self.shape, dtype, self.turned)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """The same numbers: nothing changes them."""
        made: Tensor = MappedTensor(self.source, self.shape, self.dtype, self.turned)
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Shape and precisions."""
        return f"MappedTensor({tuple(self.shape)}, {self.source.dtype} as {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Lifts what an operation works on; a new view or precision of all of it stays mapped."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if is_mapped(first):
            if (kept := _KEPT.get(func)) is not None:
                return kept(first)
            if func is _ATEN._to_copy.default:
                dtype, device = kwargs.get("dtype") or first.dtype, kwargs.get("device") or first.device
                same = torch.device(device) == first.device and dtype.is_floating_point
                return first.seen_as(dtype) if same else first.lifted(dtype, device)
        if func is _ATEN.embedding.default and is_mapped(first) and not first.turned:
            if first.source.shape == first.shape:  # a few rows of a large table
                return torch.embedding(first.source, *args[1:]).to(first.dtype)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if is_mapped(value) and argument.alias_info is not None and argument.alias_info.is_write:
                raise RuntimeError(f"{func} would change weights that are mapped from a file: lift the module first")
        return func(*tree_map(_lifted, args), **tree_map(_lifted, kwargs))


_KEPT: dict[Any, Callable[[MappedTensor], MappedTensor]] = {
    _ATEN.detach.default: lambda m: MappedTensor(m.source, m.shape, m.dtype, m.turned),
    _ATEN.alias.default: lambda m: MappedTensor(m.source, m.shape, m.dtype, m.turned),
    _ATEN.t.default: lambda m: MappedTensor(m.source, m.shape[::-1], m.dtype, not m.turned),
}
"""Operations whose result is mapped too. Linear maps take the transpose, and keep it for their backward pass."""


def is_mapped(value: object) -> TypeGuard[MappedTensor]:
    """Whether a value is mapped."""
    return isinstance(value, MappedTensor)


def _lifted(value: Any) -> Any:
    return value.lifted() if is_mapped(value) else value


def mapped(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a file in another precision, without memory for it unless it is small.

    Args:
        value: Tensor, in memory or mapped.
        dtype: Precision in which operations are to see it.

    Returns:
        The tensor itself if it has the precision.
    """
    if value.dtype == dtype or not value.is_floating_point():
        return value
    if is_mapped(value):
        return value.seen_as(dtype)
    return MappedTensor(value, value.shape, dtype) if value.nbytes > _SMALL else value.to(dtype)


def reordered(view: Tensor, shape: torch.Size) -> Tensor:
    """A tensor that is a view of another one once its numbers are put in the view's order: not before they are used.

    Args:
        view: View with as many numbers.
        shape: Shape of the tensor.
    """
    return MappedTensor(view, shape, view.dtype) if view.nbytes > _SMALL else view.reshape(shape)


def mapped_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes in their files of the weights that are mapped, each once."""
    every = {id(p): p for module in modules for p in module.parameters() if is_mapped(p)}
    return sum(parameter.source.nbytes for parameter in every.values())


def see_as(module: nn.Module, dtype: torch.dtype) -> None:
    """Makes operations see a frozen module's weights in another precision; small ones are changed to it."""
    replace_parameters(module, lambda p: None if p.dtype == dtype else mapped(p.data, dtype))


def settle(*modules: nn.Module) -> None:
    """Lifts the mapped weights of modules, unless they are too large together (`SETTLED`)."""
    if mapped_bytes(modules) > SETTLED:
        return_large_blocks(LIFTED_BLOCK)
        return
    for module in modules:
        lift(module)


def lift(module: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
    """Gives a module's mapped weights memory, one after the other.

    Args:
        module: Module, changed in place; weights that are tied stay so.
        dtype: Precision; None for that in which operations see each weight.
        device: Device; None for that of the file's tensors.
    """
    to = None if device is None else torch.device(device)
    replace_parameters(module, lambda p: p.lifted(dtype, to) if is_mapped(p) else None)


@torch.no_grad()
def place(module: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
    """Moves a module to a device, one tensor at a time and from its files; weights on a CPU stay mapped.

    Args:
        module: Module, changed in place; weights that are tied stay so.
        device: Device.
        dtype: Precision of the weights; None for their own. Buffers keep theirs: LLaMA's table of rotations must be
            exact to within a position.
    """
    to = torch.device(device)

    def placed(parameter: nn.Parameter) -> Tensor | None:
        wanted = dtype or parameter.dtype
        if is_mapped(parameter):
            if to == parameter.device:
                return None if wanted == parameter.dtype else parameter.seen_as(wanted)
            return parameter.lifted(wanted, to)
        moved = parameter.data.to(to).to(wanted)
        return None if put(parameter, moved) else moved

    replace_parameters(module, placed)
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(to)


def put(parameter: nn.Parameter, value: Tensor) -> bool:
    """Gives a parameter other numbers, if it can keep its identity; quantised ones cannot."""
    plain = type(value) is Tensor and torch._has_compatible_shallow_copy_type(parameter.data, value)
    if plain:
        parameter.data = value
    return plain


def replace_parameters(module: nn.Module, change: Callable[[nn.Parameter], Tensor | None]) -> None:
    """Puts other parameters in the places of some.

    Args:
        module: Module, changed in place.
        change: Function of a parameter that returns its new value, or None to leave it; called once for each.
    """
    known: dict[int, nn.Parameter] = {}
    for part, name, parameter in _places(module):
        if id(parameter) not in known:
            value = change(parameter)
            known[id(parameter)] = parameter if value is None else nn.Parameter(value, parameter.requires_grad)
        if known[id(parameter)] is not parameter:
            part._parameters[name] = known[id(parameter)]


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every place of a parameter in a module."""
    places = [(part, name) for part in module.modules() for name in part._parameters]
    kept: list[nn.Parameter] = []  # as long as the walk goes on, an id stands for one parameter
    for part, name in places:
        if (parameter := part._parameters[name]) is not None:
            kept.append(parameter)
            yield part, name, parameter
