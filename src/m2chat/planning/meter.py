"""Counts what code does to tensors: floating-point operations by part of the model, and bytes alive at once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Four products in place of two. The recomputation inside the kernel is no useful work."""
    return 2 * int(sdpa_flop_count(query.shape, key.shape, value.shape))


@cache
def _formula(operation: Any) -> Callable[..., int] | None:
    """The function that counts an operation's work from its arguments; None if it does none to speak of."""
    packet = operation._overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_backward:
        return _attention_backward
    counted: Callable[..., int] | None = flop_registry.get(packet)
    return counted


class Meter(TorchDispatchMode):
    """Watches operations, of any device: their work by part of the model, and the most bytes alive at once.

    An operation on meta tensors is computed once for each form of its arguments; after that its results are made from
    the forms of the first ones, since working out a shape is slower by far than anything else there.

    Args:
        known: Tensors that do not count as alive, such as the weights.
        parts: Modules by name; work is counted by the one in whose call it is done, or, in the backward pass, by the
            one whose call is gone back through.

    Attributes:
        forward: Floating-point operations (a multiplication and an addition are two) of each part outside of the
            backward pass.
        backward: The same in the backward pass, whatever is computed again there included.
        peak: The most bytes alive at once, of tensors made while it watches.
    """

    def __init__(self, known: Iterable[Tensor] = (), parts: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self._held = [tensor.untyped_storage() for tensor in known]  # alive, so that no address is used again
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._held}
        self._alive: Counter[str] = Counter()
        self._parts = dict(parts or {})
        self._calls: list[tuple[str, int]] = []
        self._spans: list[tuple[int, int, str]] = []
        self._hooks = ExitStack()
        self.forward: Counter[str] = Counter(dict.fromkeys(self._parts, 0))
        self.backward: Counter[str] = Counter(dict.fromkeys(self._parts, 0))
        self.peak = 0

    @property
    def total(self) -> int:
        """All floating-point operations so far."""
        return self.forward.total() + self.backward.total()

    def __enter__(self) -> Meter:
        for name, part in self._parts.items():
            # A part may not be called itself: of a VAE only the encoder is, of a language model only what is within.
            for module in (part, *part.children()):
                enter = module.register_forward_pre_hook(lambda *_, name=name: self._begin(name))
                leave = module.register_forward_hook(lambda *_: self._end(), always_call=True)
                self._hooks.callback(enter.remove)
                self._hooks.callback(leave.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def _begin(self, name: str) -> None:
        self._calls.append((name, torch._C._autograd._get_sequence_nr()))

    def _end(self) -> None:
        name, start = self._calls.pop()
        end = torch._C._autograd._get_sequence_nr()
        if not self._calls and end > start:  # steps of the backward pass have the numbers of those they go back through
            self._spans.append((start, end, name))

    def _part(self, node: Any) -> str:
        """The part that is at work; an empty name if it is none."""
        if node is None:
            return self._calls[-1][0] if self._calls else ""
        number = node._sequence_nr()
        return next((name for start, end, name in self._spans if start <= number < end), "")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and takes note of its work and of the storages that it made."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            result = _run(func, args, kwargs)
            if (formula := _formula(func)) is not None:
                node = torch._C._current_autograd_node()
                counts = self.forward if node is None else self.backward
                counts[self._part(node)] += formula(*args, **kwargs, out_val=result)
            for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._seen:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._seen[address]
            self._alive["bytes"] -= size

        self._seen[address] = weakref.ref(storage, gone)
        self._alive["bytes"] += size
        self.peak = max(self.peak, self._alive["bytes"])


_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and precision of a tensor."""
_KNOWN: dict[Any, tuple[bool, tuple[Any, ...]] | None] = {}
"""Results by operation and forms of its arguments: whether it is one tensor, and the forms; None if it is run."""


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation, or makes what it would return."""
    try:
        key = (func, *map(_form, args), *((name, _form(value)) for name, value in kwargs.items()))
        known = _KNOWN.get(key, False)
    except (TypeError, _NotMeta):
        return func(*args, **kwargs)
    if known is None:
        return func(*args, **kwargs)
    if known is not False:
        alone, forms = known  # type: ignore[misc]
        made = [_made(form) for form in forms]
        return made[0] if alone else tuple(made)
    result = func(*args, **kwargs)
    _KNOWN[key] = _forms_of(func, result, args, kwargs)
    return result


class _NotMeta(Exception):
    """A tensor of another device: its operations have to be run."""


def _form(value: Any) -> Any:
    """What of an argument decides the forms of the results.

    Raises:
        _NotMeta: If a tensor has contents.
        TypeError: If it cannot be compared.
    """
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotMeta
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_form, value))
    hash(value)
    return type(value), value


def _made(form: Any) -> Any:
    if not isinstance(form, tuple):
        return form
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _forms_of(
    func: Any, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, tuple[Any, ...]] | None:
    """Forms from which results can be made again; None if they share memory with an argument or each other."""
    alone = isinstance(result, Tensor)
    results = [result] if alone else result
    if func._schema.is_mutable or not isinstance(results, list | tuple):
        return None
    tensors = [item for item in results if isinstance(item, Tensor)]
    if not all(isinstance(item, Tensor | int | None) for item in results) or not all(t.is_meta for t in tensors):
        return None
    given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    made = [tensor.untyped_storage()._cdata for tensor in tensors]
    if given & set(made) or len(set(made)) != len(made):
        return None
    return alone, tuple((i.shape, i.stride(), i.dtype) if isinstance(i, Tensor) else i for i in results)
