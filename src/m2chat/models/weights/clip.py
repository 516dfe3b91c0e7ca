"""CLIP's vision tower from an open_clip name, an open_clip folder or a local file; the text tower is never built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
        name: An open_clip folder; a file such as OpenAI's ``ViT-L-14.pt``, whose numbers are read off its tensors;
            ``ARCHITECTURE:FILE``; or ``ARCHITECTURE:TAG`` as open_clip lists them, which it downloads.
        what: The setting, for messages.

    Raises:
        UserError: If it is none of them, broken, or would get another activation than it was trained with.
    """
    import open_clip

    architecture, _, tag = name.partition(":")
    if Path(name).is_dir():
        settings = load_json(Path(name) / "open_clip_config.json", what)["model_cfg"]
        return _source(settings, read_folder(Path(name), what), name)
    if Path(name).is_file():
        state = read_tensors(Path(name), what)
        return _source(_settings_of(state, name, what), state, name)
    if architecture not in open_clip.list_models() or not tag:
        raise UserError(
            f"{what}={name!r} is neither a folder nor a file nor an open_clip name with its weights, such as "
            "'ViT-L-14-quickgelu:openai', 'ViT-L-14-quickgelu:/weights/ViT-L-14.pt' or '/weights/ViT-L-14.pt'"
        )
    settings = dict(open_clip.get_model_config(architecture))
    if Path(tag).is_file():
        return _source(settings, read_tensors(Path(tag), what), name)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(f"{what}={name!r}: {tag!r} is neither a file nor weights of {architecture}; known are {tags}")
    if bool(pretrained.get("quick_gelu")) != bool(settings.get("quick_gelu")):
        trained = "QuickGELU" if pretrained.get("quick_gelu") else "GELU"
        raise UserError(
            f"{what}={name!r}: these weights were trained with {trained}, "
            f"and {architecture} has the other activation: use the architecture {_twin(architecture)!r}"
        )
    try:
        path = Path(open_clip.download_pretrained(pretrained))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}={name!r} could not be downloaded: {reason}. Copy the file here and set "
            f"{what}={architecture}:/path/to/it"
        ) from error
    return _source(settings, read_tensors(path, what), name)


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
