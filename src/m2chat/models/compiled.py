"""`torch.compile` for a training step, part by part: what is generated, token by token, stays as it is."""

from __future__ import annotations

from typing import Any

import torch

BACKEND = "inductor"
"""Backend of `torch.compile`."""


def compile_step(model: Any) -> None:
    """Compiles what a training step calls, in place; names of parameters and checkpoints stay the same.

    Layers of the language model, of which one compilation serves all, the M³Adapter's blocks, and the UNet as training
    calls it. Sequences differ in length from batch to batch, so that the first two are compiled for any.

    Args:
        model: Model of a stage, its parameters frozen or not as in training.
    """
    layers = list(model.llama.model.layers)
    if hasattr(model, "m3adapter"):
        layers += [*model.m3adapter.text_blocks, *model.m3adapter.image_blocks]
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)
    if hasattr(model, "decoder"):
        model.decoder.predicting = torch.compile(model.decoder.unet.__call__, backend=BACKEND)
