"""Divisions of the model: the units that FSDP gathers one at a time, and the components that tables name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from m2chat.models.absent import Absent
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.reading import ReadingModel


def shard_units(model: ReadingModel) -> Iterator[nn.Module]:
    """The modules that are gathered one at a time: layers of the language model, blocks of the networks around it.

    Of the UNet each transformer block is one, and what else a stage has; at the paper's scale a stage is 2.4 GB.
    """
    if not isinstance(model.llama, Absent):
        yield from model.llama.model.layers
    if not isinstance(model.clip, Absent):
        yield from model.clip.visual.transformer.resblocks
    if not isinstance(model, M2ChatModel):
        return
    yield from model.m3adapter.text_blocks
    yield from model.m3adapter.image_blocks
    decoder = model.decoder
    for stage in (*decoder.unet.down_blocks, decoder.unet.mid_block, *decoder.unet.up_blocks):
        if stage is not None:
            yield from (block for block in stage.modules() if type(block).__name__ == "BasicTransformerBlock")
            yield stage
    for encoder in (decoder.text_encoder, decoder.text_encoder_2):
        if encoder is not None and not isinstance(encoder, Absent):
            # CLIPTextModel keeps its layers one level deeper in some versions of transformers.
            yield from getattr(encoder, "text_model", encoder).encoder.layers


def unit_parameters(model: ReadingModel) -> dict[nn.Module, list[nn.Parameter]]:
    """The parameters of each unit that are in no unit inside it."""
    known: set[nn.Parameter] = set()
    units = {}
    for unit in shard_units(model):  # inner ones come first
        units[unit] = [parameter for parameter in unit.parameters() if parameter not in known]
        known.update(units[unit])
    return units


def components(model: ReadingModel) -> dict[str, nn.Module]:
    """The model's parts by the names that tables use; together they hold every parameter once.

    A network that was not loaded is none of them.
    """
    parts = {"language model": model.llama, "vision encoder": model.clip, "visual query": model.visual_query}
    if isinstance(model, M2ChatModel):
        parts |= _of_the_picture(model)
    return {name: module for name, module in parts.items() if module is not None and not isinstance(module, Absent)}


def _of_the_picture(model: M2ChatModel) -> dict[str, nn.Module]:
    decoder = model.decoder
    return {
        "M³Adapter": model.m3adapter,
        "UNet": decoder.unet,
        "VAE": decoder.vae,
        "VAE of previews": decoder.preview_vae,
        "refiner": decoder.refiner,
        "text encoder 1": decoder.text_encoder,
        "text encoder 2": decoder.text_encoder_2,
    }
