"""Tells what a path holds."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.models.swap import is_unet_folder
from m2chat.models.weights.exported import is_exported
from m2chat.models.weights.files import load_json, read_pickled, read_safetensors
from m2chat.models.weights.gguf import is_gguf
from m2chat.models.weights.loras import lora_file
from m2chat.models.weights.script import is_script
from m2chat.models.weights.sdxl_file import is_single_file


class Kind(Enum):
    """Forms of weights; each value is how a person would say it."""

    LLAMA = "LLaMA"
    ADAPTER = "LLaMA-Adapter V2"
    GGUF = "LLaMA in a GGUF file"
    CLIP = "CLIP vision tower"
    DIFFUSION = "diffusion model"
    UNET = "UNet of a diffusion model"
    LORA = "LoRA"
    CHECKPOINT = "training checkpoint of M²Chat"
    EXPORTED = "exported weights of M²Chat"


def kind_of(path: Path) -> Kind:
    """What a file or folder holds, by the files and names in it.

    Raises:
        UserError: If it is missing, broken, or nothing that is known here.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: name a file or a folder of weights")
    kind = _of_folder(path) if path.is_dir() else _of_file(path)
    if kind is None:
        raise UserError(
            f"{path} is nothing that is known here: expected are LLaMA (Meta's or a transformers folder, or a "
            "GGUF file), a LLaMA-Adapter V2 file, CLIP (an open_clip or transformers folder, or a file), SDXL (a "
            "diffusers folder or one .safetensors file), a UNet or a LoRA of it, a checkpoint (.ckpt) or "
            "exported weights of M²Chat"
        )
    return kind


def _of_folder(path: Path) -> Kind | None:
    if is_exported(path):
        return Kind.EXPORTED
    for name, kind in (
        ("model_index.json", Kind.DIFFUSION),
        ("open_clip_config.json", Kind.CLIP),
        ("params.json", Kind.LLAMA),
        ("7B/params.json", Kind.LLAMA),
    ):
        if (path / name).is_file():
            return kind
    if is_unet_folder(path):
        return Kind.UNET
    if lora_file(path) is not None:
        return Kind.LORA
    config = path / "config.json"
    models = {"llama": Kind.LLAMA, "clip": Kind.CLIP, "clip_vision_model": Kind.CLIP}
    return models.get(load_json(config, str(path)).get("model_type", "")) if config.is_file() else None


def _of_file(path: Path) -> Kind | None:
    if is_gguf(path):
        return Kind.GGUF
    if path.suffix == ".safetensors":
        return _of_names(read_safetensors(path, "weights"))
    if is_script(path):
        return Kind.CLIP
    payload = read_pickled(path, "weights")
    if not isinstance(payload, Mapping):
        return None
    if "m2chat" in payload and "state_dict" in payload:
        return Kind.CHECKPOINT
    inner = next((payload[key] for key in ("model", "state_dict") if isinstance(payload.get(key), Mapping)), payload)
    return _of_names(inner)


def _of_names(names: Mapping[str, Any]) -> Kind | None:
    if is_single_file(names):
        return Kind.DIFFUSION
    if "adapter_query.weight" in names:
        return Kind.ADAPTER
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        return Kind.LORA
    return Kind.CLIP if "visual.conv1.weight" in names else None
