"""LoRAs of the image decoder: read in any of their forms, compared with the UNet, and added to its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.decoder_config import LoraConfig
from m2chat.models.weights.decoder_parts import require_finite
from m2chat.models.weights.files import load_json, read_safetensors

_LOG = logging.getLogger(__name__)


def add_loras(unet: Any, loras: Sequence[LoraConfig]) -> None:
    """Adds LoRAs to a UNet's weights, by diffusers' loader; afterwards it is a plain UNet again.

    What a LoRA changes in text encoders is left out: the M³Adapter was trained on the output of the unchanged ones.

    Args:
        unet: UNet, changed in place.
        loras: Files and their factors.

    Raises:
        UserError: If a file is missing, broken, no LoRA, or was made for another network; or PEFT is not installed.
    """
    if not loras:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError("backbone.decoder.lora needs PEFT, which is not installed: pip install peft") from error
    names = [f"lora_{number}" for number in range(len(loras))]
    for number, (name, lora) in enumerate(zip(names, loras, strict=True)):
        what = f"backbone.decoder.lora[{number}].path"
        state, alphas, metadata = _read_lora(unet, Path(lora.path), what)
        try:
            unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata, adapter_name=name)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{what}={lora.path!r} cannot be added to the UNet here: {_first_line(error)}") from error
    unet.set_adapters(names, [lora.weight for lora in loras])
    unet.fuse_lora(adapter_names=names)
    unet.unload_lora()


def lora_file(path: Path) -> Path | None:
    """The LoRA that a path names: the file, or the only ``.safetensors`` file of a folder; None if it is none."""
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        return lora_file(inside[0]) if len(inside) == 1 else None
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    return path if any("lora" in name for name in read_safetensors(path, "LoRA")) else None


_PEFT = "base_model.model."
_PEFT_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
"""Settings in PEFT's ``adapter_config.json`` that decide what a LoRA adds."""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_lora(unet: Any, path: Path, what: str) -> tuple[dict[str, Tensor], Any, Any]:
    """The UNet's part of a LoRA by diffusers' names, its factors, and the settings of its training.

    Every layer that it changes must be there, with its widths: diffusers would skip what is not.

    Raises:
        UserError: If it is missing, broken, no LoRA, or was made for another network.
    """
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    where = f"{what}={str(path)!r}"
    if not path.exists():
        raise UserError(f"{what}: there is no {path}; expected is one .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(f"{where}: expected is one .safetensors file")
    # This compares its checksum; diffusers reads the file once more, for its header.
    require_finite(read_safetensors(path, what), where)
    try:
        state, alphas, metadata = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(path.parent), weight_name=path.name, local_files_only=True, unet_config=unet.config,
            return_lora_metadata=True,
        )  # fmt: skip
        if strange := [name for name in state if "lora" not in name]:
            raise ValueError(f"it holds {strange[0]}, which is of another method than LoRA")
        state, metadata = _prefixed(unet, state, metadata, path, where)
        of_unet = {name: value for name, value in state.items() if name.startswith("unet.")}
        layers = {name.removeprefix("unet."): value for name, value in of_unet.items()}
        layers = layers if any("lora_A" in name for name in layers) else convert_unet_state_dict_to_peft(layers)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{where} is no LoRA of a UNet that diffusers can read: {_first_line(error)}") from error
    faults = [fault for name, value in layers.items() if (fault := _misfit(unet, name, value))]
    if faults or not layers:
        reason = (
            f"{len(faults)} of its {len(layers)} tensors do not fit: {faults[0]}" if faults else "it changes no UNet"
        )
        raise UserError(
            f"{where} was made for another network than the UNet here: {reason}. Name one of the same family"
        )
    if unpaired := _gaps(layers):
        raise UserError(f"{where} is not whole: {unpaired[0]}. Download or save it again")
    if len(of_unet) < len(state):
        _LOG.warning(
            "%s changes text encoders too; that part is left out: the M³Adapter was trained on the unchanged ones",
            where,
        )
    return of_unet, alphas, metadata


def _prefixed(
    unet: Any, state: dict[str, Tensor], metadata: Any, path: Path, where: str
) -> tuple[dict[str, Tensor], Any]:
    """Names and settings with ``unet.`` in front, for files of a UNet alone: PEFT's and diffusers' own of a network.

    Args:
        unet: UNet.
        state: Tensors of the file.
        metadata: Settings in its header, or None.
        path: The file; PEFT keeps the settings in ``adapter_config.json`` beside it.
        where: Name of the file in messages.
    """
    plain = {name.removeprefix(_PEFT): value for name, value in state.items()}
    if any(name.startswith(_PEFT) for name in state):
        beside = path.with_name("adapter_config.json")
        if beside.is_file():
            settings = load_json(beside, where)
            metadata = {name: settings[name] for name in _PEFT_SETTINGS if settings.get(name) is not None}
            metadata["target_modules"] = sorted({name.removeprefix("unet.").partition(".lora_")[0] for name in plain})
            metadata = {f"unet.{name}": value for name, value in metadata.items()}
        else:
            _LOG.warning("%s: there is no adapter_config.json beside it, so that lora_alpha / r is taken for 1", where)
    names = {name for name, _ in unet.named_modules()}
    if any(name.partition(".lora_")[0] in names for name in plain):
        plain = {name if name.startswith("text_encoder") else f"unet.{name}": value for name, value in plain.items()}
        if metadata and not any(name.startswith("unet.") for name in metadata):
            metadata = {f"unet.{name}": value for name, value in metadata.items()}
    return plain, metadata


def _misfit(unet: Any, name: str, value: Tensor) -> str | None:
    """Why a tensor of a LoRA does not fit a UNet; None if it does.

    Args:
        unet: UNet.
        name: Name by PEFT, ``<layer>.lora_A.weight`` or ``<layer>.lora_B.weight``.
        value: Tensor: (rank, width of the input, ...) or (width of the output, rank, ...).
    """
    layer, _, side = name.partition(".lora_")
    try:
        weight = unet.get_submodule(layer).weight
    except AttributeError:
        return f"there is no layer {layer}"
    axis = 1 if side.startswith("A") else 0
    if value.ndim < 2:  # a bias, or DoRA's magnitudes
        fits = value.ndim == 0 or value.shape[0] == weight.shape[0]
        return None if fits else f"{layer} is {weight.shape[0]} wide, and {value.shape[0]} in the file"
    if weight.shape[axis] != value.shape[axis]:
        return f"{layer} is {weight.shape[axis]} wide, and {value.shape[axis]} in the file"
    kernel = weight.shape[2:] if axis else [1] * (weight.ndim - 2)
    if side.startswith(("A", "B")) and list(value.shape[2:]) != list(kernel):
        return f"{layer} has weights of {list(weight.shape)}, and {name} has {list(value.shape)}"
    return None


def _gaps(layers: Mapping[str, Tensor]) -> list[str]:
    """Layers of a LoRA whose two matrices are not both there, or have different ranks.

    Args:
        layers: Tensors by PEFT's names.
    """
    ranks: dict[str, dict[str, int]] = {}
    for name, value in layers.items():
        layer, _, side = name.partition(".lora_")
        if side in ("A.weight", "B.weight") and value.ndim >= 2:
            ranks.setdefault(layer, {})[side[0]] = value.shape[0 if side[0] == "A" else 1]
    gaps = []
    for layer, sides in ranks.items():
        if len(sides) < 2:
            gaps.append(f"{layer} has lora_{next(iter(sides))} alone")
        elif sides["A"] != sides["B"]:
            gaps.append(f"{layer} has lora_A of rank {sides['A']} and lora_B of rank {sides['B']}")
    return gaps
