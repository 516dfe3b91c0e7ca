"""Counts what code does to tensors: floating-point operations by part of the model, and bytes alive at once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Four products in place of two. The recomputation inside the kernel is no useful work."""
    return 2 * int(sdpa_flop_count(query, key, value))


class FlopMeter:
    """Useful floating-point operations (a multiplication and an addition are two), by module.

    Args:
        model: Model whose modules are counted separately.
    """

    def __init__(self, model: nn.Module) -> None:
        self._root = type(model).__name__
        self._names = {module: name for name, module in model.named_modules()}
        mapping = {torch.ops.aten._scaled_dot_product_flash_attention_backward: _attention_backward}
        self._counter = FlopCounterMode(display=False, custom_mapping=mapping)

    def __enter__(self) -> FlopMeter:
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)

    @property
    def total(self) -> int:
        """All of them so far."""
        return int(self._counter.get_total_flops())

    def of(self, module: nn.Module) -> int:
        """Those of a module and of everything in it so far.

        A module that is never called itself, such as a VAE of which only the encoder is, is the sum of its children.
        """
        counts = self._counter.get_flop_counts()
        name = f"{self._root}.{self._names[module]}"
        if name in counts:
            return int(sum(counts[name].values()))
        return sum(self.of(child) for child in module.children())


class LiveBytes(TorchDispatchMode):
    """The most bytes that were alive at once, of tensors made while it watches.

    Args:
        known: Tensors that do not count, such as the weights.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._held = [tensor.untyped_storage() for tensor in known]  # alive, so that no address is used again
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._held}
        self._alive: Counter[str] = Counter()
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and takes note of the storages that it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[address]
            self._alive["bytes"] -= size

        self._seen[address] = weakref.ref(storage, gone)
        self._alive["bytes"] += size
        self.peak = max(self.peak, self._alive["bytes"])
