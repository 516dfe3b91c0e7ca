"""Builds the model from its backbones: the one place where folders become modules, at both scales."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from m2chat.checksums import SUMS
from m2chat.errors import UserError
from m2chat.models.config import NEW, BackboneConfig, M3AdapterConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import M3Adapter
from m2chat.models.reading import ReadingModel
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder

if TYPE_CHECKING:
    from m2chat.models.llama_adapter import AdapterLlamaForCausalLM

_SAMPLE_BYTES = 1 << 20


def build_m2chat(
    backbone: BackboneConfig, m3adapter: M3AdapterConfig, frozen_dtype: torch.dtype = torch.float32
) -> M2ChatModel:
    """Loads the backbones and puts a new M³Adapter between them.

    Args:
        backbone: Paths of the pretrained networks.
        m3adapter: Sizes and gate of the connector.
        frozen_dtype: Precision of CLIP, SDXL and LLaMA itself; what may be trained is fp32.

    Returns:
        The model, everything but the connector as pretrained; only CLIP and SDXL are frozen yet.

    Raises:
        UserError: If a folder or a file is missing, broken or of another network; names the setting, the path and the
            remedy.
    """
    llama, visual_query, clip = load_reader(backbone, frozen_dtype)
    decoder = ImageDecoder(backbone.image_decoder, frozen_dtype, backbone.decoder)
    return composed(m3adapter, llama, visual_query, clip, decoder)


def composed(
    m3adapter: M3AdapterConfig,
    llama: AdapterLlamaForCausalLM,
    visual_query: VisualQueryEncoder,
    clip: ClipTokens,
    decoder: ImageDecoder,
) -> M2ChatModel:
    """The networks with a new M³Adapter of the sizes that they ask for between them."""
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


def fingerprint(backbone: BackboneConfig) -> str:
    """A short name of the backbones' contents: trained weights are useless on any others.

    Every file counts with its name, its size and its first and last MiB: a changed network differs there, and a
    full hash of 30 GB at every start would cost a minute.
    """
    digest = hashlib.sha256()
    for root in _roots(backbone).values():
        _digest_part(digest, root)
    digest.update(backbone.channel_order.encode())
    if backbone.adapter == NEW:
        digest.update(repr(backbone.new_adapter).encode())
    return digest.hexdigest()[:16]


def part_fingerprints(backbone: BackboneConfig) -> dict[str, str]:
    """A short name of each backbone's contents, by its setting, to name the one that differs."""
    names = {}
    for setting, root in _roots(backbone).items():
        digest = hashlib.sha256()
        _digest_part(digest, root)
        names[setting] = digest.hexdigest()[:16]
    if backbone.adapter == NEW:
        names["adapter"] = hashlib.sha256(repr(backbone.new_adapter).encode()).hexdigest()[:16]
    return names


def _roots(backbone: BackboneConfig) -> dict[str, Path]:
    """Files or folder of each backbone, by its setting; those of an empty setting are left out."""
    from m2chat.models.weights.clip import local_clip_file
    from m2chat.models.weights.llama import llama_folder

    roots = {
        "language_model": llama_folder(Path(backbone.language_model)),
        "adapter": Path(backbone.adapter),
        "vision_encoder": local_clip_file(backbone.vision_encoder) or Path(backbone.vision_encoder),
        "image_decoder": Path(backbone.image_decoder),
    }
    return {setting: root for setting, root in roots.items() if getattr(backbone, setting) not in ("", NEW)}


def _digest_part(digest: Any, root: Path) -> None:
    paths = (path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    # Downloaders leave notes in hidden folders, with the time in them. A list of checksums is no content.
    files = sorted(
        path
        for path in paths
        if path.name != SUMS and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    for path in files:
        digest.update((path.relative_to(root).as_posix() if root.is_dir() else path.name).encode())
        if path.is_file():
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(str(size).encode())
                for start in (0, max(0, size - _SAMPLE_BYTES)):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
