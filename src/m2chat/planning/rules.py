"""What a GPU would do differently from the meta device: autocast's casts, and attention that keeps no matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The lists of torch.amp for CUDA, as far as this model uses them.
_HALF = frozenset({"linear", "conv2d", "matmul", "__matmul__", "bmm", "baddbmm", "addmm", "einsum"})
_FULL = frozenset({"layer_norm", "group_norm", "softmax", "pow", "rsqrt", "cosine_similarity", "cross_entropy", "sum"})


class GpuRules(TorchFunctionMode):
    """Runs Python code on meta tensors by the rules of a GPU.

    Autocast does not know the meta device, and attention there falls back to the plain product, whose matrix a GPU
    never stores.

    Args:
        autocast: Precision of the operations that autocast lowers; None for no autocast.
    """

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast
        self._casts: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Casts as autocast would, and sends attention to the flash kernel."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            query, key, value = (self._lower(tensor) for tensor in args[:3])
            if kwargs.get("enable_gqa") and key.shape[1] != query.shape[1]:
                key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
            # A mask would be read, not kept: it changes neither memory nor work to speak of.
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(query, key, value, 0.0, bool(kwargs.get("is_causal", False)), False)[0]
        if name in _HALF and self._active():
            args, kwargs = self._each(self._lower, args), {k: self._each(self._lower, v) for k, v in kwargs.items()}
        elif name in _FULL and self._active():
            args, kwargs = self._each(_raise, args), {k: self._each(_raise, v) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def __enter__(self) -> GpuRules:
        """Turns the CPU's autocast on, too: it leaves meta tensors alone, and shows where a model turns it off.

        In a batch of one, transformers looks for packed sequences in numbers that meta tensors do not have.
        """
        self._packing = patch("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
        self._packing.start()
        self._switch = torch.autocast("cpu", self.autocast, self.autocast is not None)
        self._switch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._packing.stop()
        self._switch.__exit__(*error)

    def _active(self) -> bool:
        return self.autocast is not None and torch.is_autocast_enabled("cpu")

    def _lower(self, tensor: Tensor) -> Tensor:
        if not self._active() or not tensor.is_floating_point() or tensor.dtype == self.autocast:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.autocast)
        # Autocast keeps the lowered copy of a trained weight until the step is over.
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = tensor.to(self.autocast)
        return self._casts[id(tensor)]

    def _each(self, change: Callable[[Tensor], Tensor], value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, tuple | list):
            return type(value)(self._each(change, item) for item in value)
        return value


def _raise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
