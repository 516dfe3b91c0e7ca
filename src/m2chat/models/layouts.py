"""Where a model's weights lie in memory while it generates; no value changes.

Training keeps the layouts of the files: a parameter that is trained or saved has its memory for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2chat.models.decoding import joined
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.mapped import SETTLED


@torch.no_grad()
def lay_out(model: M2ChatModel) -> None:
    """Arranges weights for generation: call it after they were moved or converted.

    Maps of the same input in the language model get weights side by side, which decoding takes for one; convolutions
    of the UNet and the VAE get theirs by channels last, as processors and GPUs multiply them. On a CPU, networks that
    are too large to be copied stay as they lie in their files.

    Args:
        model: Model, changed in place.
    """
    for layer in model.llama.model.layers if _may_copy(model.llama) else ():
        attention, mlp = layer.self_attn, layer.mlp
        _side_by_side([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        _side_by_side([mlp.gate_proj.weight, mlp.up_proj.weight])
    decoder = model.decoder
    networks = [decoder.unet, decoder.vae, *([decoder.refiner.unet] if decoder.refiner is not None else [])]
    for network in filter(_may_copy, networks):
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and type(module.weight.data) is Tensor:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _may_copy(network: nn.Module) -> bool:
    """Whether a network is on a GPU, or small, so that it is of no importance that copies do not lie in its file."""
    large = sum(parameter.nbytes for parameter in network.parameters()) > SETTLED
    return not large or all(parameter.device.type != "cpu" for parameter in network.parameters())


def _side_by_side(weights: list[nn.Parameter]) -> None:
    """Moves matrices next to each other, unless they are there, or quantised."""
    if joined(weights) is None and all(type(weight.data) is Tensor for weight in weights):
        together = torch.cat([weight.data for weight in weights])
        for weight, part in zip(weights, together.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
