"""Builds the model from its backbones: the one place where folders become modules, at both scales."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.image_decoder import ImageDecoder, load_json, require_weights
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import M3Adapter
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.models.vlm_sd import VLMSDModel

_SAMPLE_BYTES = 1 << 20


def build_m2chat(backbone: BackboneConfig, m3adapter: M3AdapterConfig) -> M2ChatModel:
    """Loads the backbones and puts a new M³Adapter between them.

    Args:
        backbone: Where the pretrained networks lie.
        m3adapter: Numbers of the connector.

    Returns:
        The model in fp32, everything but the connector as pretrained; nothing is frozen yet but eye and hand.

    Raises:
        UserError: If a folder or a file is missing; names the setting, the path and the remedy.
    """
    llama, visual_query, clip = load_reader(backbone)
    decoder = ImageDecoder(backbone.image_decoder)
    connector = M3Adapter(
        m3adapter,
        llama.config.hidden_size,
        clip.width,
        decoder.queries,
        decoder.sequence_width,
        decoder.pooled_width,
    )
    return M2ChatModel(llama, clip, visual_query, connector, decoder)


def build_vlm_sd(backbone: BackboneConfig) -> VLMSDModel:
    """Loads the backbones of the baseline "VLM + SD finetune"; nothing is frozen yet but the eye.

    Raises:
        UserError: As `build_m2chat`.
    """
    llama, visual_query, clip = load_reader(backbone)
    return VLMSDModel(llama, clip, visual_query, ImageDecoder(backbone.image_decoder), backbone.image_decoder)


def load_reader(backbone: BackboneConfig) -> tuple[Any, VisualQueryEncoder, ClipTokens]:
    """The language model, the maker of visual queries and the eye.

    Raises:
        UserError: If a part is missing, or the eye does not fit the adapter.
    """
    llama, visual_query = load_language(backbone)
    clip = load_clip(backbone)
    if clip.width != visual_query.clip_proj.in_features:
        raise UserError(
            f"backbone.vision_encoder={backbone.vision_encoder!r} has tokens of width {clip.width}, but "
            f"backbone.adapter={backbone.adapter!r} was trained on width {visual_query.clip_proj.in_features}"
        )
    return llama, visual_query, clip


def load_language(backbone: BackboneConfig) -> tuple[Any, VisualQueryEncoder]:
    """The language model with its adapter, and the maker of visual queries."""
    from transformers import LlamaForCausalLM

    from m2chat.models.adapter_file import from_official, read_shape
    from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM

    folder = Path(backbone.language_model)
    require_weights(folder, "backbone.language_model")
    own = load_json(folder / "config.json", "backbone.language_model")
    official = load_adapter_file(Path(backbone.adapter))
    shape = read_shape(official)
    settings = {key: value for key, value in own.items() if key not in ("model_type", "architectures", "dtype")}
    config = AdapterLlamaConfig(
        adapter_len=shape.prompts,
        adapter_layers=shape.layers,
        adapter_bias=shape.bias,
        lora_rank=shape.lora_rank,
        **settings,
    )
    llama: Any = AdapterLlamaForCausalLM(config)
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    llama.load_state_dict(plain.state_dict(), strict=False)
    llama.init_extra_tokens()
    visual_query = VisualQueryEncoder(
        shape.clip_width, config.hidden_size, shape.prompts, shape.visual_depth, shape.visual_heads
    )
    ours = from_official(official, config.num_attention_heads, config.num_hidden_layers)
    parts: tuple[tuple[str, torch.nn.Module], ...] = (("llama.", llama), ("visual_query.", visual_query))
    for prefix, module in parts:
        state = {name.removeprefix(prefix): value for name, value in ours.items() if name.startswith(prefix)}
        unexpected = module.load_state_dict(state, strict=False).unexpected_keys
        if unexpected:
            raise UserError(
                f"backbone.adapter={backbone.adapter!r} does not fit backbone.language_model={str(folder)!r}: "
                f"nothing is named {unexpected[:3]}"
            )
    return llama, visual_query


def load_adapter_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter file, in fp32."""
    if not path.is_file():
        raise UserError(
            f"backbone.adapter: there is no {path}. The setting names a LLaMA-Adapter V2 file such as BIAS-7B; "
            "`make backbones` rebuilds the micro one."
        )
    payload = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in payload["model"].items()}


def load_clip(backbone: BackboneConfig) -> ClipTokens:
    """The frozen eye."""
    import open_clip

    name = backbone.vision_encoder
    if Path(name).is_dir():
        load_json(Path(name) / "open_clip_config.json", "backbone.vision_encoder")
        model: Any = open_clip.create_model(f"local-dir:{name}")
    else:
        architecture, _, tag = name.partition(":")
        if architecture not in open_clip.list_models() or not tag:
            raise UserError(
                f"backbone.vision_encoder={name!r} is neither a folder nor an open_clip name with its weights, such "
                "as 'ViT-L-14-quickgelu:openai' or 'ViT-L-14-quickgelu:/weights/ViT-L-14.pt'"
            )
        model = open_clip.create_model(architecture, pretrained=tag)
    return ClipTokens(model.float().eval().visual, backbone.channel_order)


def fingerprint(backbone: BackboneConfig) -> str:
    """A short name of the backbones' contents: trained weights are useless on any others.

    Every file counts with its name, its size and its first and last MiB: a changed network differs there, and a
    full hash of 30 GB at every start would cost a minute.
    """
    digest = hashlib.sha256()
    for setting in (backbone.language_model, backbone.adapter, backbone.vision_encoder, backbone.image_decoder):
        root = Path(setting)
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        for path in files:
            digest.update((path.relative_to(root).as_posix() if root.is_dir() else path.name).encode())
            if path.is_file():
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    digest.update(str(size).encode())
                    for start in (0, max(0, size - _SAMPLE_BYTES)):
                        file.seek(start)
                        digest.update(file.read(_SAMPLE_BYTES))
    digest.update(backbone.channel_order.encode())
    return digest.hexdigest()[:16]
