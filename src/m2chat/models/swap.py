"""Another image decoder for a trained connector: what a path names, as settings of the backbones.

A connector writes into the output space of the decoder's text encoders; with the same text encoders any UNet draws what
it means. Whether they are the same is what `Fingerprints` compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig, DecoderConfig, LoraConfig, decoder_config
from m2chat.models.weights.files import read_safetensors
from m2chat.models.weights.sdxl_file import is_single_file

_FORMS = (
    "a diffusers folder of SDXL or SD 1.5, SDXL in one .safetensors file, a UNet (its folder or .safetensors file), a "
    "LoRA (.safetensors), or a .yaml file with settings of backbone.decoder, such as configs/decoder/lcm.yaml"
)


def with_decoder(backbone: BackboneConfig, path: str | Path) -> BackboneConfig:
    """The same backbones with another image decoder.

    Args:
        backbone: Backbones of a training.
        path: A diffusers folder or a single file, which replaces the whole decoder; a UNet or a LoRA, which replaces or
            is added to that part of it; or a YAML file with `DecoderConfig`'s settings, and `image_decoder` where that
            is another one too.

    Raises:
        UserError: If it is none of them.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        return _of_settings(backbone, path)
    if (path / "model_index.json").is_file():
        return replace(backbone, image_decoder=str(path), decoder=DecoderConfig())
    if (path / "config.json").is_file() and _class_name(path / "config.json") == "UNet2DConditionModel":
        return replace(backbone, decoder=replace(backbone.decoder, unet=str(path), lora=[]))
    if path.is_file() and path.suffix == ".safetensors":
        names = read_safetensors(path, "--decoder").keys()
        if is_single_file(names):
            return replace(backbone, image_decoder=str(path), decoder=DecoderConfig())
        if any("lora" in name for name in names):
            loras = [*backbone.decoder.lora, LoraConfig(str(path))]
            return replace(backbone, decoder=replace(backbone.decoder, lora=loras))
        if any(name.endswith(("conv_in.weight", "input_blocks.0.0.weight")) for name in names):
            return replace(backbone, decoder=replace(backbone.decoder, unet=str(path), lora=[]))
    there = "is nothing of this" if path.exists() else "does not exist"
    raise UserError(f"--decoder {path}: it {there}; expected is {_FORMS}")


def _of_settings(backbone: BackboneConfig, path: Path) -> BackboneConfig:
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError as error:
        raise UserError(f"--decoder {path} is not YAML: {error}") from error
    if not isinstance(settings, Mapping):
        there = "holds no settings" if path.is_file() else "does not exist"
        raise UserError(f"--decoder {path}: it {there}; expected is {_FORMS}")
    parts = {name: value for name, value in settings.items() if name != "image_decoder"}
    decoder = decoder_config(parts)
    return replace(backbone, image_decoder=settings.get("image_decoder", backbone.image_decoder), decoder=decoder)


def _class_name(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError):
        return None
