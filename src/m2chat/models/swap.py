"""Another image decoder for a trained connector: what a path names, as settings of the backbones.

A connector writes into the output space of the decoder's text encoders; with the same text encoders any UNet draws what
it means. Whether they are the same is what `Fingerprints` compare.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig, decoder_config
from m2chat.models.weights.files import read_safetensors
from m2chat.models.weights.loras import lora_file
from m2chat.models.weights.sdxl_file import is_single_file

_LOG = logging.getLogger(__name__)
_FORMS = (
    "a diffusers folder of SDXL or SD 1.5, SDXL in one .safetensors file, a UNet (its folder or .safetensors file), a "
    "LoRA (.safetensors, or a folder with that file alone), or a .yaml file with settings of backbone.decoder, such as "
    "configs/decoder/lcm.yaml"
)


def with_decoder(backbone: BackboneConfig, path: str | Path) -> BackboneConfig:
    """The same backbones with another image decoder.

    Args:
        backbone: Backbones of a training.
        path: A diffusers folder or a single file, which replaces the whole decoder; a UNet, which replaces the UNet
            with its LoRAs and preset; a LoRA, which is added; or a YAML file with `DecoderConfig`'s settings, which
            replaces all of them, and `image_decoder` where that is another one too.

    Raises:
        UserError: If it is none of them.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        return _of_settings(backbone, path)
    if (path / "model_index.json").is_file():
        return replace(backbone, image_decoder=str(path), decoder=DecoderConfig())
    if is_unet_folder(path):
        return replace(backbone, decoder=changed(backbone.decoder, {"unet": str(path)}))
    if (lora := lora_file(path)) is not None:
        loras = [*backbone.decoder.lora, LoraConfig(str(lora))]
        return replace(backbone, decoder=replace(backbone.decoder, lora=loras))
    if path.is_file() and path.suffix == ".safetensors":
        names = read_safetensors(path, "--decoder").keys()
        if is_single_file(names):
            return replace(backbone, image_decoder=str(path), decoder=DecoderConfig())
        if any(name.endswith(("conv_in.weight", "input_blocks.0.0.weight")) for name in names):
            return replace(backbone, decoder=changed(backbone.decoder, {"unet": str(path)}))
    there = "is nothing of this" if path.exists() else "does not exist"
    raise UserError(f"--decoder {path}: it {there}; expected is {_FORMS}")


def changed(decoder: DecoderConfig, changes: Mapping[str, Any]) -> DecoderConfig:
    """The settings with others by name.

    LoRAs and a preset belong to the UNet that they were made for: another UNet without new ones draws without, and what
    overrode a part of that preset goes with it. A line in the log states it.

    Args:
        decoder: Settings.
        changes: Settings that replace those of the same name.

    Raises:
        UserError: If a setting does not exist or has no valid value.
    """
    kept = {item.name: getattr(decoder, item.name) for item in fields(decoder)}
    if changes.get("unet", decoder.unet) != decoder.unet:
        names = ["lora"]
        if decoder.preset is not None:
            names += ["preset", "scheduler", "spacing", "guidance_interval"]
        dropped = [name for name in names if name not in changes and kept.pop(name)]
        if dropped:
            _LOG.warning(
                "backbone.decoder.unet=%r replaces the UNet for which %s was set: it draws without. Name them again to "
                "keep them",
                str(changes["unet"]),
                " and ".join(dropped),
            )
    return decoder_config({**kept, **changes})


def is_unet_folder(path: Path) -> bool:
    """Whether a folder is that of a UNet of diffusers."""
    return (path / "config.json").is_file() and _class_name(path / "config.json") == "UNet2DConditionModel"


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
    return replace(backbone, image_decoder=str(settings.get("image_decoder", backbone.image_decoder)), decoder=decoder)


def _class_name(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError):
        return None
