"""Parts of the image decoder from separate files: another UNet, another VAE, LoRAs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.config import LoraConfig
from m2chat.models.weights.files import load_json, read_folder, read_safetensors

_LOG = logging.getLogger(__name__)
Configs = Mapping[str, Mapping[str, Any]]
_LDM = "model.diffusion_model."
_INTERFACE = (
    "in_channels",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
"""Numbers in which a UNet must agree with the one that it replaces: its inputs."""


def open_unet(path: Path, configs: Configs, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Opens a UNet that replaces the image decoder's.

    Args:
        path: Folder of a diffusers UNet, or a ``.safetensors`` file with its tensors, by diffusers' names or by those
            of SDXL's single files.
        configs: Configuration of each part of the image decoder.
        what: The setting that names it, for messages.

    Returns:
        Its configuration and its tensors.

    Raises:
        UserError: If it is missing, broken, or has other inputs than the UNet that it replaces.
    """
    base = dict(configs["unet"])
    if path.is_dir():
        described = load_json(path / "config.json", what)
        differ = [name for name in _INTERFACE if described.get(name) != base.get(name)]
        if differ:
            raise UserError(
                f"{what}={str(path)!r}: {differ[0]} is {described.get(differ[0])} there and "
                f"{base.get(differ[0])} in the UNet that it replaces: it was made for other inputs. "
                "Name a UNet of the same family"
            )
        return described, read_folder(path, what)
    if path.suffix != ".safetensors":
        raise UserError(f"{what}={str(path)!r}: expected is a folder of a diffusers UNet, or one .safetensors file")
    state = read_safetensors(path, what)
    if any(name.startswith(_LDM) for name in state):
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        state = convert_ldm_unet_checkpoint(state, base)
    return base, state


def open_vae(path: Path, configs: Configs, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Opens a VAE that replaces the image decoder's, or draws its previews.

    Args:
        path: Folder of an `AutoencoderKL` or `AutoencoderTiny` of diffusers.
        configs: Configuration of each part of the image decoder.
        what: The setting that names it, for messages.

    Returns:
        Its configuration and its tensors.

    Raises:
        UserError: If it is missing, broken, or its latents are not those of the VAE that it replaces.
    """
    described, base = load_json(path / "config.json", what), configs["vae"]
    kind = described.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(f"{what}={str(path)!r} is a {kind}: expected is an AutoencoderKL or an AutoencoderTiny")
    for name, mine, other in (
        ("latent channels", described.get("latent_channels", 4), base.get("latent_channels", 4)),
        ("pixels of a latent", _factor(described), _factor(base)),
    ):
        if mine != other:
            raise UserError(
                f"{what}={str(path)!r} has {mine} {name}, the VAE of the image decoder {other}: name one that was made "
                "for the same latents"
            )
    return described, read_folder(path, what)


def _factor(config: Mapping[str, Any]) -> int:
    """Pixels of a latent."""
    channels = config.get("block_out_channels") or config.get("decoder_block_out_channels") or (64,) * 4
    return int(2 ** (len(channels) - 1))


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
        state, alphas, metadata = _read_lora(unet, Path(lora.path), f"backbone.decoder.lora[{number}].path")
        unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata, adapter_name=name)
    unet.set_adapters(names, [lora.weight for lora in loras])
    unet.fuse_lora(adapter_names=names)
    unet.unload_lora()


def _read_lora(unet: Any, path: Path, what: str) -> tuple[dict[str, Tensor], Any, Any]:
    """The UNet's part of a LoRA by diffusers' names, its factors, and the settings of its training.

    Every layer that it changes must be there, with its widths: diffusers would skip what is not.

    Raises:
        UserError: If it is missing, broken, no LoRA, or was made for another network.
    """
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    where = f"{what}={str(path)!r}"
    if path.suffix != ".safetensors":
        raise UserError(f"{where}: expected is one .safetensors file")
    read_safetensors(path, what)  # compares its checksum; diffusers reads the file once more, for its header
    try:
        state, alphas, metadata = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(path.parent), weight_name=path.name, local_files_only=True, unet_config=unet.config,
            return_lora_metadata=True,
        )  # fmt: skip
        if strange := [name for name in state if "lora" not in name]:
            raise ValueError(f"it holds {strange[0]}, which is of another method than LoRA")
        of_unet = {name: value for name, value in state.items() if name.startswith("unet.")}
        layers = {name.removeprefix("unet."): value for name, value in of_unet.items()}
        layers = layers if any("lora_A" in name for name in layers) else convert_unet_state_dict_to_peft(layers)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} is no LoRA of a UNet that diffusers can read: {reason}") from error
    faults = [fault for name, value in layers.items() if (fault := _misfit(unet, name, value))]
    if faults or not layers:
        reason = (
            f"{len(faults)} of its {len(layers)} tensors do not fit: {faults[0]}" if faults else "it changes no UNet"
        )
        raise UserError(
            f"{where} was made for another network than the UNet here: {reason}. Name one of the same family"
        )
    if len(of_unet) < len(state):
        _LOG.warning(
            "%s changes text encoders too; that part is left out: the M³Adapter was trained on the unchanged ones",
            where,
        )
    return of_unet, alphas, metadata


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
    if value.ndim >= 2 and weight.shape[axis] != value.shape[axis]:
        return f"{layer} is {weight.shape[axis]} wide, and {value.shape[axis]} in the file"
    return None
