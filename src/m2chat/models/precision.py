"""What a change of precision must leave alone: tables of numbers, and the VAE's way from pictures to latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self


class ExactBuffers(nn.Module):
    """A module whose tables keep their precision when its weights are lowered.

    `Module.to(dtype)` lowers buffers too. LLaMA's table of rotation frequencies in bf16 turns words by another angle
    the farther they stand in the text, by half a turn some hundred words on.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = [
            (part, name, buffer)
            for part in self.modules()
            for name, buffer in part.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)
        for part, name, buffer in exact:
            moved = part._buffers[name]
            if moved is not None and moved.dtype.itemsize < buffer.dtype.itemsize:
                part._buffers[name] = buffer.to(moved.device)
        return self


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Turns autocast off for what is computed on a device.

    Autocast does not know the meta device, on which plans are made: the CPU's switch stands for it there.
    """
    if device.type == "meta":
        return torch.autocast("cpu", enabled=False)
    known = torch.amp.is_autocast_available(device.type)  # type: ignore[no-untyped-call]
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def full(tensor: Tensor) -> Tensor:
    """A tensor in fp32, or in fp64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def lowered_in_training(model: nn.Module) -> Iterator[nn.Parameter]:
    """The frozen parameters that are kept in bf16 under autocast, which would lower them at each use anyway.

    Those that lead from pictures to latents are none of them: rounded latents would be another picture, and the noise
    of the first timesteps would be lost in the rounding.
    """
    vae = getattr(getattr(model, "decoder", None), "vae", None)
    parts = (getattr(vae, name, None) for name in ("encoder", "quant_conv"))
    exact = {parameter for part in parts if part is not None for parameter in part.parameters()}
    return (p for p in model.parameters() if not p.requires_grad and p not in exact)
