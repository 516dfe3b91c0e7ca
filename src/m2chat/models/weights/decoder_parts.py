"""Parts of the image decoder from separate files: another UNet, another VAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.weights.files import load_json, read_folder, read_safetensors

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
    if not path.exists():
        raise UserError(f"{what}: there is no {path}; name a folder of a diffusers UNet, or one .safetensors file")
    if path.is_dir():
        described = load_json(path / "config.json", what)
        if (kind := described.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
            raise UserError(f"{what}={str(path)!r} is a {kind}: expected is a UNet2DConditionModel")
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
        UserError: If it is missing, broken, or its latents are not those of the VAE that it replaces: their number,
            their size or their scale.
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
    for name in ("latents_mean", "latents_std", "shift_factor"):
        if described.get(name):
            raise UserError(f"{what}={str(path)!r} has {name}, as VAEs of other families: name one of the same family")
    mine_scale, other_scale = _scale(described), _scale(base)
    # An `AutoencoderTiny` was trained on scaled latents: its factor is 1 for every family.
    tiny = "AutoencoderTiny" in (kind, base.get("_class_name"))
    expected = 1.0 if kind == "AutoencoderTiny" else mine_scale if tiny else other_scale
    if not math.isclose(mine_scale, expected, rel_tol=1e-4):
        raise UserError(
            f"{what}={str(path)!r} has scaling_factor {mine_scale:g}, expected is {expected:g} (the VAE of the image "
            f"decoder has {other_scale:g}): its latents are scaled otherwise. Name one of the same latents"
        )
    return described, read_folder(path, what)


def _scale(config: Mapping[str, Any]) -> float:
    """Factor between a VAE's latents and the UNet's; diffusers' default where it is not stated."""
    default = 1.0 if config.get("_class_name") == "AutoencoderTiny" else 0.18215
    return float(config.get("scaling_factor") or default)


def _factor(config: Mapping[str, Any]) -> int:
    """Pixels of a latent."""
    channels = config.get("block_out_channels") or config.get("decoder_block_out_channels") or (64,) * 4
    return int(2 ** (len(channels) - 1))


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Refuses tensors with numbers that are NaN or infinite.

    Args:
        state: Tensors by name.
        where: Name of their source in messages.

    Raises:
        UserError: That names the first such tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise UserError(
                f"{where}: {name} has numbers that are not finite (NaN or infinite): its training diverged, or it is "
                "damaged. Name another one"
            )
