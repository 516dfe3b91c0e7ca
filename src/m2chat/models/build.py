"""Builds the model from its backbones: the one place where folders become modules, at both scales."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from m2chat.errors import UserError
from m2chat.models.absent import Absent, Kept
from m2chat.models.config import NEW, BackboneConfig, M3AdapterConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import M3Adapter
from m2chat.models.mapped import settle
from m2chat.models.reading import ReadingModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder

if TYPE_CHECKING:
    from m2chat.models.llama_adapter import AdapterLlamaForCausalLM


def build_m2chat(
    backbone: BackboneConfig,
    m3adapter: M3AdapterConfig,
    frozen_dtype: torch.dtype = torch.float32,
    kept: Kept | None = None,
    settled: bool = True,
) -> M2ChatModel:
    """Loads the backbones and puts a new M³Adapter between them.

    Args:
        backbone: Paths of the pretrained networks.
        m3adapter: Sizes and gate of the connector.
        frozen_dtype: Precision of CLIP, SDXL and LLaMA itself; what may be trained is fp32. Large networks that have
            another one in their files stay mapped to them, and are lifted as they compute (`m2chat.models.mapped`);
            moved to a GPU they go there a tensor at a time.
        kept: What a feature cache has: the networks whose outputs it keeps are not loaded.
        settled: Whether small networks are lifted at once, which is faster than to lift them at each use; who shards
            the model does it a unit at a time.

    Returns:
        The model, everything but the connector as pretrained; only CLIP and SDXL are frozen yet.

    Raises:
        UserError: If a folder or a file is missing, broken or of another network; names the setting, the path and the
            remedy.
    """
    if kept is not None:
        decoder = ImageDecoder(backbone.image_decoder, frozen_dtype, backbone.decoder, kept.of_the_decoder, settled)
        return composed(m3adapter, *_reader_beside(backbone, kept, frozen_dtype, settled), decoder)
    llama, visual_query, clip = load_reader(backbone, frozen_dtype, settled)
    decoder = ImageDecoder(backbone.image_decoder, frozen_dtype, backbone.decoder, settled=settled)
    return composed(m3adapter, llama, visual_query, clip, decoder)


def _reader_beside(backbone: BackboneConfig, kept: Kept, dtype: torch.dtype, settled: bool) -> tuple[Any, Any, Any]:
    """What reads, as far as a feature cache does not replace it."""
    if kept.looking:
        return load_reader(backbone, dtype, settled)
    clip = Absent("vision encoder", width=kept.clip_width)
    if kept.reading:
        language = Absent("language model", config=SimpleNamespace(hidden_size=kept.width))
        return language, Absent("visual query"), clip
    llama, visual_query = _open_language(backbone, dtype)
    if settled:
        settle(llama)
    return llama, visual_query, clip


def check_layers(m3adapter: M3AdapterConfig, count: int | None) -> None:
    """Makes sure that the M³Adapter reads layers that there are.

    Args:
        m3adapter: Sizes and gate of the connector.
        count: Layers of the language model; None of one that a feature cache replaces.

    Raises:
        UserError: If the language model has no such layer.
    """
    for layer in m3adapter.layers:
        if count is not None and not -count - 1 <= layer <= count:
            raise UserError(
                f"m3adapter.layers={list(m3adapter.layers)}: the language model has {count} layers: choose from "
                f"{-count - 1} to {count}; 0 is the embedding, -1 the last layer"
            )


def composed(
    m3adapter: M3AdapterConfig,
    llama: AdapterLlamaForCausalLM,
    visual_query: VisualQueryEncoder,
    clip: ClipTokens,
    decoder: ImageDecoder,
) -> M2ChatModel:
    """The networks with a new M³Adapter of the sizes that they ask for between them.

    Raises:
        UserError: If the M³Adapter reads a layer that the language model has not.
    """
    check_layers(m3adapter, getattr(llama.config, "num_hidden_layers", None))
    connector = M3Adapter(
        m3adapter,
        llama.config.hidden_size,
        clip.width,
        decoder.queries,
        decoder.sequence_width,
        decoder.pooled_width,
    )
    return M2ChatModel(llama, clip, visual_query, connector, decoder)


def build_reading(
    backbone: BackboneConfig, frozen_dtype: torch.dtype = torch.float32, settled: bool = True
) -> ReadingModel:
    """Loads what reads, for stage 0, and no image decoder; arguments and errors as for `build_m2chat`."""
    llama, visual_query, clip = load_reader(backbone, frozen_dtype, settled)
    return ReadingModel(llama, clip, visual_query)


def load_reader(
    backbone: BackboneConfig, frozen_dtype: torch.dtype = torch.float32, settled: bool = True
) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder, ClipTokens]:
    """The language model, the encoder of visual queries, and CLIP.

    Args:
        backbone: Paths of the pretrained networks.
        frozen_dtype: Precision of what is never trained.
        settled: As for `build_m2chat`.

    Raises:
        UserError: If a part is missing, or CLIP does not fit the adapter.
    """
    llama, visual_query = _open_language(backbone, frozen_dtype)
    clip = _open_clip(backbone, frozen_dtype)
    if clip.width != visual_query.clip_proj.in_features:
        raise UserError(
            f"backbone.vision_encoder={backbone.vision_encoder!r} has tokens of width {clip.width}, but "
            f"backbone.adapter={backbone.adapter!r} was trained on width {visual_query.clip_proj.in_features}"
        )
    if settled:
        settle(llama, clip)
    return llama, visual_query, clip


def load_language(
    backbone: BackboneConfig, frozen_dtype: torch.dtype = torch.float32
) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    """The language model with its adapter, and the encoder of visual queries.

    Args:
        backbone: Paths of the pretrained networks.
        frozen_dtype: Precision of LLaMA itself; the adapter's weights, which may be trained, are fp32.

    Raises:
        UserError: If a part is missing, or the adapter was made for another language model.
    """
    llama, visual_query = _open_language(backbone, frozen_dtype)
    settle(llama)
    return llama, visual_query


def _open_language(
    backbone: BackboneConfig, frozen_dtype: torch.dtype
) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    """The same, all of it mapped."""
    from m2chat.models.weights.adapter import open_adapter
    from m2chat.models.weights.language import assemble
    from m2chat.models.weights.llama import open_llama
    from m2chat.models.weights.new_adapter import new_adapter, with_new_lora

    source = open_llama(Path(backbone.language_model), "backbone.language_model")
    where = f"backbone.adapter={backbone.adapter!r}"
    if backbone.adapter == NEW:
        assert backbone.new_adapter is not None  # BackboneConfig refuses that
        return assemble(source, new_adapter(source, backbone.new_adapter, _clip_width(backbone)), where, frozen_dtype)
    adapter = open_adapter(Path(backbone.adapter), "backbone.adapter", backbone.visual_heads, backbone.visual_blocks)
    if backbone.new_lora is not None:
        adapter = with_new_lora(source, adapter, backbone.new_lora, where)
    return assemble(source, adapter, where, frozen_dtype, backbone.allow_foreign_adapter)


def _clip_width(backbone: BackboneConfig) -> int:
    """W of the vision encoder, from its description."""
    from m2chat.models.weights.clip import open_clip_tower

    return int(open_clip_tower(backbone.vision_encoder, "backbone.vision_encoder").settings["embed_dim"])


def load_clip(backbone: BackboneConfig, dtype: torch.dtype = torch.float32) -> ClipTokens:
    """The frozen vision encoder; a mark in the adapter's file gives the channel order of its training."""
    clip = _open_clip(backbone, dtype)
    settle(clip)
    return clip


def _open_clip(backbone: BackboneConfig, dtype: torch.dtype) -> ClipTokens:
    """The same, all of it mapped."""
    from m2chat.models.weights.adapter import marked_channel_order
    from m2chat.models.weights.clip import load_tower

    marked = None if backbone.adapter == NEW else marked_channel_order(backbone)
    return ClipTokens(
        load_tower(backbone.vision_encoder, "backbone.vision_encoder", dtype), marked or backbone.channel_order
    )
