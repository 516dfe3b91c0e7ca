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
from m2chat.models.reading import ReadingModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder

if TYPE_CHECKING:
    from m2chat.models.llama_adapter import AdapterLlamaForCausalLM


def build_m2chat(
    backbone: BackboneConfig,
    m3adapter: M3AdapterConfig,
    frozen_dtype: torch.dtype = torch.float32,
    kept: Kept | None = None,
) -> M2ChatModel:
    """Loads the backbones and puts a new M³Adapter between them.

    Args:
        backbone: Paths of the pretrained networks.
        m3adapter: Sizes and gate of the connector.
        frozen_dtype: Precision of CLIP, SDXL and LLaMA itself; what may be trained is fp32.
        kept: What a feature cache has: the networks whose outputs it keeps are not loaded.

    Returns:
        The model, everything but the connector as pretrained; only CLIP and SDXL are frozen yet.

    Raises:
        UserError: If a folder or a file is missing, broken or of another network; names the setting, the path and the
            remedy.
    """
    if kept is not None:
        decoder = ImageDecoder(backbone.image_decoder, frozen_dtype, backbone.decoder, kept.of_the_decoder)
        return composed(m3adapter, *_reader_beside(backbone, kept, frozen_dtype), decoder)
    llama, visual_query, clip = load_reader(backbone, frozen_dtype)
    decoder = ImageDecoder(backbone.image_decoder, frozen_dtype, backbone.decoder)
    return composed(m3adapter, llama, visual_query, clip, decoder)


def _reader_beside(backbone: BackboneConfig, kept: Kept, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """What reads, as far as a feature cache does not replace it."""
    if kept.looking:
        return load_reader(backbone, dtype)
    clip = Absent("vision encoder", width=kept.clip_width)
    if kept.reading:
        language = Absent("language model", config=SimpleNamespace(hidden_size=kept.width))
        return language, Absent("visual query"), clip
    return *load_language(backbone, dtype), clip


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


def build_reading(backbone: BackboneConfig, frozen_dtype: torch.dtype = torch.float32) -> ReadingModel:
    """Loads what reads, for stage 0, and no image decoder; arguments and errors as for `build_m2chat`."""
    llama, visual_query, clip = load_reader(backbone, frozen_dtype)
    return ReadingModel(llama, clip, visual_query)


def load_reader(
    backbone: BackboneConfig, frozen_dtype: torch.dtype = torch.float32
) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder, ClipTokens]:
    """The language model, the encoder of visual queries, and CLIP.

    Args:
        backbone: Paths of the pretrained networks.
        frozen_dtype: Precision of what is never trained.

    Raises:
        UserError: If a part is missing, or CLIP does not fit the adapter.
    """
    llama, visual_query = load_language(backbone, frozen_dtype)
    clip = load_clip(backbone, frozen_dtype)
    if clip.width != visual_query.clip_proj.in_features:
        raise UserError(
            f"backbone.vision_encoder={backbone.vision_encoder!r} has tokens of width {clip.width}, but "
            f"backbone.adapter={backbone.adapter!r} was trained on width {visual_query.clip_proj.in_features}"
        )
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
    from m2chat.models.weights.adapter import open_adapter
    from m2chat.models.weights.language import assemble
    from m2chat.models.weights.llama import open_llama
    from m2chat.models.weights.new_adapter import new_adapter

    source = open_llama(Path(backbone.language_model), "backbone.language_model")
    where = f"backbone.adapter={backbone.adapter!r}"
    if backbone.adapter == NEW:
        assert backbone.new_adapter is not None  # BackboneConfig refuses that
        return assemble(source, new_adapter(source, backbone.new_adapter, _clip_width(backbone)), where, frozen_dtype)
    adapter = open_adapter(Path(backbone.adapter), "backbone.adapter", backbone.visual_heads, backbone.visual_blocks)
    return assemble(source, adapter, where, frozen_dtype, backbone.allow_foreign_adapter)


def _clip_width(backbone: BackboneConfig) -> int:
    """W of the vision encoder, from its description."""
    from m2chat.models.weights.clip import open_clip_tower

    return int(open_clip_tower(backbone.vision_encoder, "backbone.vision_encoder").settings["embed_dim"])


def load_clip(backbone: BackboneConfig, dtype: torch.dtype = torch.float32) -> ClipTokens:
    """The frozen vision encoder; a mark in the adapter's file gives the channel order of its training."""
    from m2chat.models.weights.adapter import marked_channel_order
    from m2chat.models.weights.clip import load_tower

    marked = None if backbone.adapter == NEW else marked_channel_order(backbone)
    return ClipTokens(
        load_tower(backbone.vision_encoder, "backbone.vision_encoder", dtype), marked or backbone.channel_order
    )
