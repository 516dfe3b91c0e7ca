"""SDXL (base or refiner) and SD 1.5 from a diffusers folder, and SDXL from a single file."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.absent import VAE_ENCODER, Absent
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.mapped import lift, settle
from m2chat.models.refiner import Refiner
from m2chat.models.schedulers import make_scheduler, scheduler_name
from m2chat.models.weights.decoder_parts import open_unet, open_vae, require_finite
from m2chat.models.weights.families import require_family, require_supported
from m2chat.models.weights.files import load_json, read_folder, read_safetensors, weight_files
from m2chat.models.weights.loading import KeyReport, compare, fill, on_meta
from m2chat.models.weights.loras import add_loras
from m2chat.models.weights.sampled import tensor_fingerprint
from m2chat.models.weights.sdxl_file import take_apart

_LOG = logging.getLogger(__name__)


@dataclass
class DiffusionSource:
    """A diffusion model as it is on disk.

    Args:
        configs: Configuration of each part: ``unet``, ``vae``, ``scheduler``, and the text encoders that there are.
        states: Tensors of each network.
        report: Use of each name of a single file; empty for a folder.
        where: Name in messages.
        zeros: Whether its negative condition is zeros (`force_zeros_for_empty_prompt`); else it is the encoding of the
            empty prompt. A single file does not state it: SDXL base has zeros, the refiner the empty prompt.
    """

    configs: dict[str, dict[str, Any]]
    states: dict[str, dict[str, Tensor]]
    report: KeyReport
    where: str
    zeros: bool = True


@dataclass
class DiffusionParts:
    """The networks of a diffusion model; the refiner has the second text encoder alone, SD 1.5 the first.

    Args:
        unet: UNet.
        vae: VAE.
        scheduler: Scheduler that draws.
        text_encoder: First text encoder, or None.
        text_encoder_2: Second text encoder, or None.
        preview_vae: VAE of previews, or None.
        refiner: SDXL's refiner, or None.
        noise_schedule: Configuration of the scheduler that the model's folder names: its noise is that of the
            UNet's training, whichever scheduler draws.
        zeros: Whether the negative condition is zeros; else it is the encoding of the empty prompt.
    """

    unet: Any
    vae: Any
    scheduler: Any
    text_encoder: Any
    text_encoder_2: Any
    preview_vae: Any = None
    noise_schedule: Any = None
    refiner: Refiner | None = None
    zeros: bool = True


def open_diffusion(path: Path, what: str, without: Collection[str] = ()) -> DiffusionSource:
    """Opens a diffusers folder or a single file; tensors stay on disk until they are used.

    Args:
        path: The folder, or a ``.safetensors`` file.
        what: The setting that names it, for messages.
        without: Networks whose tensors are not opened.

    Raises:
        UserError: If it is missing, incomplete, broken or another kind of network.
    """
    where = f"{what}={str(path)!r}"
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{where}: expected is a diffusers folder, or SDXL in one .safetensors file")
        parts = take_apart(read_safetensors(path, what), where)
        require_supported(parts.configs, where)
        if parts.report.unexpected:
            _LOG.warning("%s: %d tensors have no place here, such as %s", where, len(parts.report.unexpected),
                         parts.report.unexpected[0])  # fmt: skip
        states = {name: state for name, state in parts.states.items() if name not in without}
        return DiffusionSource(parts.configs, states, parts.report, where, "text_encoder" in parts.states)
    index = load_json(path / "model_index.json", what)
    require_family(index, where)
    names = [name for name in ("text_encoder", "text_encoder_2") if index.get(name, [None])[0]]
    configs = {"scheduler": load_json(path / "scheduler" / "scheduler_config.json", what)}
    for name in (*names, "vae", "unet"):  # everything is there before gigabytes are read
        configs[name] = load_json(path / name / "config.json", what)
        weight_files(path / name, what)
    require_supported(configs, where)
    states = {name: read_folder(path / name, what) for name in configs if name not in ("scheduler", *without)}
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return DiffusionSource(configs, states, KeyReport(), where, zeros)


def load_diffusion(
    path: Path,
    what: str,
    dtype: torch.dtype | None = None,
    config: DecoderConfig | None = None,
    without: Collection[str] = (),
    settled: bool = True,
) -> DiffusionParts:
    """Builds the networks of a diffusion model.

    Args:
        path: See `open_diffusion`.
        what: The setting that names it, for messages.
        dtype: Precision of the networks; None keeps the files'. Large ones stay mapped to their files, and are lifted
            to it as they compute (`m2chat.models.mapped`).
        config: Parts in place of those of `path`, LoRAs, and the scheduler; None for those of `path` alone.
        without: Text encoders, UNet, or the VAE's encoder, that are not loaded; `Absent` stands in their places.
        settled: As for `m2chat.models.build.build_m2chat`.

    Raises:
        UserError: If it cannot be opened, is of an unsupported family, or a tensor is missing, too much or of another
            shape.
    """
    config = config or DecoderConfig()
    source, where = open_with_parts(path, what, config, without)
    scheduler = _scheduler(source, config)
    built = {name: _build(name, source, where[name], dtype, without) for name in source.states}
    built |= {name: _absent(name, source) for name in without if name in source.configs}
    parts = DiffusionParts(
        built["unet"],
        built["vae"],
        scheduler,
        built.get("text_encoder"),
        built.get("text_encoder_2"),
        built.get("preview_vae"),
        source.configs["scheduler"],
        None if config.refiner is None else _load_refiner(source, config, dtype),
        source.zeros,
    )
    for name in ("unet", "vae", "preview_vae"):
        if getattr(config, name) is not None and name in source.states:
            require_finite(built[name].state_dict(), where[name])
    if config.lora and not isinstance(parts.unet, Absent):
        lift(parts.unet)  # its weights are about to change
        add_loras(parts.unet, config.lora)
    if settled:
        refiner = [] if parts.refiner is None else [parts.refiner]
        settle(*built.values(), *refiner)
    return parts


def open_with_parts(
    path: Path, what: str, config: DecoderConfig, without: Collection[str] = ()
) -> tuple[DiffusionSource, dict[str, str]]:
    """Opens a diffusion model and puts others in the places of its parts.

    Args:
        path: See `open_diffusion`.
        what: The setting that names it, for messages.
        config: Parts in place of those of `path`.
        without: Networks whose tensors are not opened.

    Returns:
        The model, and the name of each part in messages.

    Raises:
        UserError: If something cannot be opened, or does not fit.
    """
    source = open_diffusion(path, what, without)
    where = {name: f"{source.where}, {name}" for name in source.states}
    replaced = {"unet": (config.unet, open_unet), "vae": (config.vae, open_vae)}
    replaced = {name: item for name, item in replaced.items() if name not in without}
    if config.preview_vae is not None:
        replaced["preview_vae"] = (config.preview_vae, open_vae)
    for name, (other, opener) in replaced.items():
        if other is not None:
            where[name] = f"backbone.decoder.{name}={other!r}"
            source.configs[name], source.states[name] = opener(Path(other), source.configs, f"backbone.decoder.{name}")
            require_supported(source.configs, where[name])
    return source, where


def _load_refiner(base: DiffusionSource, config: DecoderConfig, dtype: torch.dtype | None) -> Refiner:
    """The refiner's UNet and scheduler.

    Raises:
        UserError: If it cannot be opened, is no refiner of the base, or reads another text encoder.
    """
    what = "backbone.decoder.refiner"
    source = open_diffusion(Path(str(config.refiner)), what)
    remedy = (
        "Name the refiner that was made for this image decoder (for SDXL stabilityai/stable-diffusion-xl-refiner-1.0), "
        "or leave the setting out"
    )
    second, unet = base.configs.get("text_encoder_2"), source.configs["unet"]
    if second is None:
        raise UserError(
            f"{source.where}: the image decoder {base.where} is no SDXL, which alone has a refiner. {remedy}"
        )
    numbers = 5 * int(unet.get("addition_time_embed_dim") or 0)
    wanted = {
        "in_channels": base.configs["unet"].get("in_channels"),
        "cross_attention_dim": second["hidden_size"],
        "projection_class_embeddings_input_dim": second["projection_dim"] + numbers,
    }
    for name, value in wanted.items():
        if unet.get(name) != value:
            raise UserError(
                f"{source.where} is no refiner: {name} of its UNet is {unet.get(name)} and should be {value}. {remedy}"
            )
    of_base, of_refiner = (tensor_fingerprint(item.states.get("text_encoder_2", {})) for item in (base, source))
    if of_base != of_refiner:
        raise UserError(
            f"{source.where} has another text space than the image decoder {base.where}: their text_encoder_2 differ. "
            f"{remedy}"
        )
    network = _build("unet", source, f"{source.where}, unet", dtype)
    require_finite(network.state_dict(), f"{source.where}, unet")
    return Refiner(network, _scheduler(source, config), config.refiner_start, source.zeros)


def _scheduler(source: DiffusionSource, config: DecoderConfig) -> Any:
    """The scheduler that draws, on the noise schedule of the model's folder."""
    original = source.configs["scheduler"]
    name = config.effective_scheduler or scheduler_name(str(original.get("_class_name")), source.where)
    return make_scheduler(name, original, config.effective_spacing)


def skeleton(name: str, config: dict[str, Any]) -> Any:
    """A part of a diffusion model on the meta device.

    Args:
        name: ``unet``, ``vae``, ``preview_vae``, ``text_encoder`` or ``text_encoder_2``.
        config: Contents of its ``config.json``.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from m2chat.models.drawing_unet import UNet2DConditionModel

    if not name.startswith("text"):
        tiny = config.get("_class_name") == "AutoencoderTiny"
        kind: Any = UNet2DConditionModel if name == "unet" else AutoencoderTiny if tiny else AutoencoderKL
        return on_meta(lambda: kind.from_config(config))
    encoder: Any = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    return on_meta(lambda: encoder(CLIPTextConfig.from_dict(config)))


def named_for(module: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state by the names that the installed libraries use: older files have other names for the same."""
    if hasattr(module, "_fix_state_dict_keys_on_load"):  # diffusers' attention of the VAE
        module._fix_state_dict_keys_on_load(state)
        return state
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    prefix = "text_model."  # transformers has had it, and has it not, for the text encoder without projection
    wanted = any(name.startswith(prefix) for name in module.state_dict())
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    return {
        f"{prefix}{name}" if wanted and not name.startswith("text_projection") else name: value
        for name, value in plain.items()
        if wanted or not name.startswith("text_projection")
    }


def part_report(name: str, source: DiffusionSource) -> KeyReport:
    """What would become of the names of a part, without loading it."""
    module = skeleton(name, source.configs[name])
    return compare(named_for(module, dict(source.states[name])), module.state_dict())


def _build(
    name: str, source: DiffusionSource, where: str, dtype: torch.dtype | None, without: Collection[str] = ()
) -> Any:
    module, state = skeleton(name, source.configs[name]), source.states[name]
    if name == "vae" and VAE_ENCODER in without:
        for half in ("encoder", "quant_conv"):
            if getattr(module, half, None) is not None:
                setattr(module, half, Absent(f"VAE's {half}"))
        state = {key: value for key, value in state.items() if not key.startswith(("encoder.", "quant_conv."))}
    return fill(module, named_for(module, state), where, dtype).eval()


def _absent(name: str, source: DiffusionSource) -> Absent:
    """A network that was not loaded, with its configuration."""
    return Absent(name.replace("_", " "), config=skeleton(name, source.configs[name]).config)
