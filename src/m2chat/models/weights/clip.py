"""CLIP's vision tower: an open_clip name or folder, a folder of transformers, a file; the text tower is never built."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.weights.files import load_json, read_folder, read_tensors
from m2chat.models.weights.loading import fill, on_meta

_HEAD_WIDTH = 64


@dataclass(frozen=True)
class ClipSource:
    """A vision tower as it is on disk.

    Args:
        settings: ``embed_dim``, ``quick_gelu`` and ``vision_cfg`` of an open_clip model.
        state: Tensors by open_clip's names without ``visual.``.
        ignored: Names of the text tower and the like.
        where: Name in messages.
    """

    settings: dict[str, Any]
    state: dict[str, Tensor]
    ignored: list[str]
    where: str


def local_clip_file(name: str) -> Path | None:
    """The local file that a setting names, by itself or behind an open_clip architecture and ``:``."""
    for candidate in (name, name.partition(":")[2]):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


def open_clip_tower(name: str, what: str) -> ClipSource:
    """Opens CLIP; its tensors stay on disk until they are used.

    Args:
        name: An open_clip folder; a folder of transformers' `CLIPModel` or `CLIPVisionModelWithProjection`; a file such
            as OpenAI's ``ViT-L-14.pt``, whose numbers are read off its tensors; ``ARCHITECTURE:FILE``; or
            ``ARCHITECTURE:TAG`` as open_clip lists them, which it downloads.
        what: The setting, for messages.

    Raises:
        UserError: If it is none of them, broken, or would get another activation than it was trained with.
    """
    architecture, _, tag = name.partition(":")
    if Path(name).is_dir():
        settings = clip_settings(Path(name), what)
        state = read_folder(Path(name), what)
        # A folder may have both descriptions: the names tell whose weights were read.
        theirs = not is_open_clip(Path(name)) or any(tensor.startswith("vision_model.") for tensor in state)
        return _source(settings, named_for_open_clip(state, name) if theirs else state, name)
    if Path(name).is_file():
        state = read_tensors(Path(name), what)
        return _source(_settings_of(state, name, what), state, name)
    settings, pretrained = named_weights(name, what)
    if pretrained is None:
        return _source(settings, read_tensors(Path(tag), what), name)
    try:
        import open_clip

        path = Path(open_clip.download_pretrained(pretrained))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}={name!r} could not be downloaded: {reason}. Copy the file here and set "
            f"{what}={architecture}:/path/to/it"
        ) from error
    return _source(settings, read_tensors(path, what), name)


def named_weights(name: str, what: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What open_clip knows of an architecture with its weights, before anything is read or downloaded.

    Args:
        name: ``ARCHITECTURE:TAG`` or ``ARCHITECTURE:FILE``.
        what: The setting, for messages.

    Returns:
        Settings of the architecture, and the description of the weights; None if they are a file.

    Raises:
        UserError: If one of them is not known, or the architecture has another activation than the weights.
    """
    architecture, _, tag = name.partition(":")
    settings = architecture_settings(architecture)
    if settings is None or not tag:
        raise UserError(
            f"{what}={name!r} is neither a folder nor a file nor an open_clip name with its weights, such as "
            "'ViT-L-14-quickgelu:openai', 'ViT-L-14-quickgelu:/weights/ViT-L-14.pt' or '/weights/ViT-L-14.pt'"
        )
    if Path(tag).is_file():
        return settings, None
    pretrained: dict[str, Any] = _tables().get_pretrained_cfg(architecture, tag)
    if not pretrained:
        tags = ", ".join(_tables().list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(f"{what}={name!r}: {tag!r} is neither a file nor weights of {architecture}; known are {tags}")
    if bool(pretrained.get("quick_gelu")) != bool(settings.get("quick_gelu")):
        trained = "QuickGELU" if pretrained.get("quick_gelu") else "GELU"
        raise UserError(
            f"{what}={name!r}: these weights were trained with {trained}, "
            f"and {architecture} has the other activation: use the architecture {_twin(architecture)!r}"
        )
    return settings, pretrained


def architecture_settings(name: str) -> dict[str, Any] | None:
    """What open_clip states of an architecture; None of a name that it does not know."""
    folder = Path(_tables().__file__).parent / "model_configs"
    path = next((path for path in folder.glob("*.json") if path.stem == name), None)
    return None if path is None else dict(json.loads(path.read_text(encoding="utf-8")))


@cache
def _tables() -> Any:
    """open_clip's table of published weights without its networks, which take seconds to import."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType("_m2chat_open_clip")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[package.__name__] = package
    return import_module(f"{package.__name__}.pretrained")


def is_open_clip(folder: Path) -> bool:
    """Whether a folder of CLIP is open_clip's; the other layout is transformers'."""
    return (folder / "open_clip_config.json").is_file() or not (folder / "config.json").is_file()


def clip_settings(folder: Path, what: str) -> dict[str, Any]:
    """Settings of a folder of CLIP, in open_clip's form.

    Args:
        folder: Folder with open_clip's ``open_clip_config.json`` or transformers' ``config.json``.
        what: The setting, for messages.

    Raises:
        UserError: If it has neither, or one of another network.
    """
    if is_open_clip(folder):
        settings: dict[str, Any] = load_json(folder / "open_clip_config.json", what)["model_cfg"]
        return settings
    config = load_json(folder / "config.json", what)
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise UserError(
            f"{what}={str(folder)!r} is a {config.get('model_type')!r} model: expected is CLIP, as an open_clip folder "
            "or a folder of transformers' CLIPModel or CLIPVisionModelWithProjection"
        )
    from transformers import CLIPVisionConfig

    # A whole CLIP keeps the vision tower's numbers in a part of its own; what is not written there is a default.
    vision = CLIPVisionConfig.from_dict(config.get("vision_config", {}) if config["model_type"] == "clip" else config)
    if vision.hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{what}={str(folder)!r}: the activation {vision.hidden_act!r} is neither 'quick_gelu' nor 'gelu'"
        )
    return {
        "embed_dim": config.get("projection_dim", vision.projection_dim),
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
    }


_RENAMED = (
    (r"^embeddings\.class_embedding$", "class_embedding"),
    (r"^embeddings\.patch_embedding\.weight$", "conv1.weight"),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),  # the misspelling is transformers'
    (r"^post_layernorm\.", "ln_post."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
)
"""Names of transformers behind ``vision_model.``, and of open_clip behind ``visual.``."""


def named_for_open_clip(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of transformers' CLIP by open_clip's names; those of the text tower keep theirs.

    Args:
        state: Tensors by transformers' names.
        where: Name of their source in messages.

    Raises:
        UserError: If the projection is missing: LLaMA-Adapter reads projected tokens.
    """
    if "visual_projection.weight" not in state:
        raise UserError(
            f"{where} has no visual_projection: M²Chat reads CLIP's projected tokens, and a CLIPVisionModel alone has "
            "none. Save a CLIPModel or a CLIPVisionModelWithProjection"
        )
    renamed = {"visual.proj": state["visual_projection.weight"].T.contiguous()}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("vision_model.")
        if name == "visual_projection.weight" or plain.endswith("position_ids"):
            continue
        part = re.match(r"^encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", plain)
        if name.startswith(("text_model.", "text_projection", "logit_scale")):
            renamed[name] = tensor
        elif part:
            joined.setdefault(f"visual.transformer.resblocks.{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = tensor
        else:
            new = next((re.sub(old, by, plain) for old, by in _RENAMED if re.match(old, plain)), plain)
            renamed[f"visual.{new}"] = tensor
    for name, parts in joined.items():
        renamed[name] = torch.cat([parts[letter] for letter in "qkv" if letter in parts])
    return renamed


def tower_skeleton(source: ClipSource) -> Any:
    """The vision tower on the meta device."""
    import open_clip

    settings = {key: source.settings[key] for key in ("embed_dim", "quick_gelu") if key in source.settings}
    vision = open_clip.CLIPVisionCfg(**source.settings["vision_cfg"])
    return on_meta(
        lambda: open_clip.CLIP(vision_cfg=vision, text_cfg=open_clip.CLIPTextCfg(layers=1), **settings)
    ).visual


def load_tower(name: str, what: str, dtype: torch.dtype | None = None) -> Any:
    """The vision tower of CLIP, in evaluation mode.

    Args:
        name: See `open_clip_tower`.
        what: The setting, for messages.
        dtype: Precision of its parameters; None keeps the file's.

    Raises:
        UserError: If it cannot be opened or does not fit.
    """
    source = open_clip_tower(name, what)
    return fill(tower_skeleton(source), source.state, f"{what}={source.where!r}", dtype).eval()


def _source(settings: dict[str, Any], everything: dict[str, Tensor], where: str) -> ClipSource:
    if "timm_model_name" in settings["vision_cfg"] or not any(name.startswith("visual.") for name in everything):
        raise UserError(
            f"{where}: expected are the weights of a CLIP vision transformer by OpenAI's or open_clip's names "
            f"('visual.conv1.weight', ...), found {sorted(everything)[:2]}"
        )
    state = {name.removeprefix("visual."): value for name, value in everything.items() if name.startswith("visual.")}
    vision, first = settings["vision_cfg"], state.get("conv1.weight")
    wanted = (vision.get("width", 768), 3, *[vision.get("patch_size", 16)] * 2)  # open_clip's defaults
    if first is not None and tuple(first.shape) != wanted:  # before the network is built, whose code takes seconds
        raise UserError(
            f"{where}: the file has a tower of width {first.shape[0]} with patches of {first.shape[-1]} pixels, and "
            f"the architecture has {wanted[0]} and {wanted[-1]}: name the architecture that the weights were trained as"
        )
    return ClipSource(settings, state, [name for name in everything if not name.startswith("visual.")], where)


def _settings_of(state: dict[str, Tensor], name: str, what: str) -> dict[str, Any]:
    """Numbers of a vision transformer as OpenAI trained them: heads of 64 channels, QuickGELU."""
    try:
        convolution, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
        embed_dim = state["visual.proj"].shape[1]
    except KeyError as error:
        raise UserError(
            f"{what}={name!r} lacks {error}: expected is a CLIP vision transformer such as OpenAI's ViT-L-14.pt"
        ) from None
    layers = {key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")}
    side = round((len(positions) - 1) ** 0.5)
    vision = {
        "image_size": side * convolution.shape[-1],
        "layers": len(layers),
        "width": convolution.shape[0],
        "head_width": min(_HEAD_WIDTH, convolution.shape[0]),
        "patch_size": convolution.shape[-1],
    }
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision}


def _twin(architecture: str) -> str:
    suffix = "-quickgelu"
    return architecture.removesuffix(suffix) if architecture.endswith(suffix) else architecture + suffix
