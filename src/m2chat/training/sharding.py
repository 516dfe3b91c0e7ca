"""How the model is cut for FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from m2chat.models.m2chat import M2ChatModel


def shard_units(model: M2ChatModel) -> Iterator[nn.Module]:
    """The modules that are gathered one at a time: layers of the language model, blocks of the networks around it."""
    yield from model.llama.model.layers
    yield from model.clip.visual.transformer.resblocks
    yield from model.m3adapter.text_blocks
    yield from model.m3adapter.image_blocks
    decoder = model.decoder
    yield from decoder.unet.down_blocks
    if decoder.unet.mid_block is not None:
        yield decoder.unet.mid_block
    yield from decoder.unet.up_blocks
    for encoder in (decoder.text_encoder, decoder.text_encoder_2):
        if encoder is not None:
            # CLIPTextModel keeps its layers one level deeper in some versions of transformers.
            yield from getattr(encoder, "text_model", encoder).encoder.layers


def shard(model: M2ChatModel, mesh: Any, shard_frozen: bool = True) -> None:
    """Shards a model in place; from then on only its `forward` may be called, since FSDP2 gathers weights there.

    Args:
        model: Already frozen as its stage wants.
        mesh: The data-parallel device mesh.
        shard_frozen: Whether frozen parameters are sharded as well; if not, every process holds them whole, which
            costs memory and saves most of the traffic.
    """
    from torch.distributed.fsdp import fully_shard

    ignored = set() if shard_frozen else {p for p in model.parameters() if not p.requires_grad}
    for unit in shard_units(model):
        if any(parameter not in ignored for parameter in unit.parameters()):
            fully_shard(unit, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
