"""Diffusion models that share SDXL's file layout and not its mathematics: refused by name, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from m2chat.errors import UserError
from m2chat.models.schedulers import scheduler_name

SUPPORTED = "M²Chat draws with SDXL (base, Turbo, Lightning or retrained) and with SD 1.5"
_FAMILIES = {
    "StableDiffusion3": "SD3",
    "Flux": "FLUX",
    "Sana": "Sana",
    "PixArt": "PixArt",
    "Kolors": "Kolors",
    "HunyuanDiT": "HunyuanDiT",
    "StableCascade": "Stable Cascade",
    "AuraFlow": "AuraFlow",
    "Kandinsky": "Kandinsky",
    "Lumina": "Lumina",
}
"""Beginnings of the pipeline classes of other families, and their names."""
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
"""Classes that a part may have."""
_CHANNELS = {9: "an inpainting UNet", 8: "an InstructPix2Pix UNet"}
"""UNets with 4 latent channels and further inputs."""
_FILES = {
    "joint_blocks.": "SD3",
    "double_blocks.": "FLUX",
    "double_stream_modulation": "FLUX.2",
    "linear_attn": "Sana",
    "attention_y_norm": "Sana",
}
"""Parts of the names in single files of other families."""


def require_family(index: Mapping[str, Any], where: str) -> None:
    """Refuses a diffusers folder of another family by its ``model_index.json``.

    Args:
        index: Contents of the file.
        where: Name of the folder in messages.

    Raises:
        UserError: That names the family.
    """
    kind = str(index.get("_class_name", ""))
    family = next((name for start, name in _FAMILIES.items() if kind.startswith(start)), None)
    if family is None and "transformer" in index:
        family = f"a {kind}, which draws with a transformer"
    if family is not None:
        raise UserError(f"{where} is {family}: {SUPPORTED}")
    for part, classes in _CLASSES.items():
        _, name = (index.get(part) or [None, None])[:2]
        if name is not None and name not in classes:
            raise UserError(f"{where}: its {part} is a {name}, expected is {' or '.join(classes)}: {SUPPORTED}")


def require_supported(configs: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Refuses parts that would load, and draw something else than they were made for.

    Args:
        configs: Configuration of each part: ``unet``, ``vae``, ``scheduler``, ...
        where: Name of their source in messages.

    Raises:
        UserError: That names the part and the reason.
    """
    kind = str(configs["scheduler"].get("_class_name"))
    if kind.startswith(("EDM", "Flow")):
        scheduler_name(kind, where)
    predicts = configs["scheduler"].get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{where}: its scheduler has prediction_type {predicts!r}; supported are 'epsilon' and 'v_prediction'"
        )
    vae, unet = configs["vae"], configs["unet"]
    for name in ("latents_mean", "latents_std", "shift_factor"):
        if vae.get(name):
            raise UserError(
                f"{where}: its VAE has {name}: its latents are scaled as in Playground v2.5, SD3 or FLUX, not as in "
                f"SDXL. {SUPPORTED}"
            )
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if channels != latents or unet.get("out_channels") != latents:
        named = _CHANNELS.get(channels or 0, "a UNet for other inputs") if latents == 4 else "a UNet of another VAE"
        raise UserError(
            f"{where}: the UNet has {channels} input and {unet.get('out_channels')} output channels, the VAE's latents "
            f"have {latents}: it is {named}. {SUPPORTED}, from noise alone"
        )
    if unet.get("time_cond_proj_dim"):
        raise UserError(
            f"{where}: the UNet takes the guidance scale as an input (time_cond_proj_dim), as whole LCM UNets do: use "
            "the LCM-LoRA in backbone.decoder.lora instead, with backbone.decoder.preset=lcm-4"
        )


def family_of_names(names: Iterable[str]) -> str | None:
    """The family of a single file by the names of its tensors; None if it is none of those known here."""
    for name in names:
        for part, family in _FILES.items():
            if part in name:
                return family
        if name in ("edm_mean", "edm_std") or name.startswith("edm_vpred"):
            return "a model of the EDM family (Playground v2.5, CosXL)"
    return None
