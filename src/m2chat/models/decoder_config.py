"""Settings of the image decoder: what replaces parts of its folder, LoRAs, and the way it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from os import PathLike

from m2chat.errors import UserError
from m2chat.models.schedulers import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    OWN_SPACING,
    PRESETS,
    SCHEDULERS,
    SPACINGS,
    WHOLE,
    Interval,
    Preset,
    Spacing,
    checked_interval,
    one_of,
)

DECODER_PATHS = ("unet", "vae", "preview_vae", "refiner")
"""Settings of `DecoderConfig` that are paths, beside those of the LoRAs."""
MAX_LORA = 10.0
"""Largest factor of a LoRA, of either sign: what is beyond adds nothing but noise."""
_LORA_FORM = "give a list of files with their factors: [{path: style.safetensors, weight: 0.8}]"


@dataclass
class LoraConfig:
    """A LoRA of the image decoder.

    Args:
        path: ``.safetensors`` file in the form of diffusers, PEFT or kohya.
        weight: Factor of its change, -10 to 10; 1 applies it as it was trained.

    Raises:
        UserError: If the path or the factor is no valid one.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.path = _path(self.path, "backbone.decoder.lora: path")
        if isinstance(self.weight, bool) or not isinstance(self.weight, Real) or not abs(self.weight) <= MAX_LORA:
            raise UserError(
                f"backbone.decoder.lora: weight={self.weight!r} of {self.path}: give a number from {-MAX_LORA:g} to "
                f"{MAX_LORA:g}; 1 applies the LoRA as it was trained"
            )


@dataclass
class DecoderConfig:
    """What replaces parts of the image decoder, and how it draws; by default nothing, as its own folder states.

    Args:
        unet: UNet in place of that of `image_decoder`: a folder of diffusers, or one ``.safetensors`` file such as
            SDXL-Lightning's.
        lora: LoRAs, added to the weights while they are loaded.
        vae: Folder of a VAE in place of that of `image_decoder`: `AutoencoderKL`, or `AutoencoderTiny` (TAESDXL).
        preview_vae: The same for previews of unfinished pictures; None takes the VAE that also decodes pictures.
        scheduler: Name of the scheduler, one of `SCHEDULERS`; None takes that of the preset, else of `image_decoder`.
        spacing: Spacing of the timesteps, ``leading`` or ``trailing``; None as for `scheduler`.
        refiner: Folder of SDXL's refiner, or its single file, which takes over the last steps (Fig. 2); None for none.
        refiner_start: Share of the noise schedule after which the refiner takes over, 0-1.
        preset: ``turbo``, ``lightning-4``, ``lcm-4`` or ``fast``: scheduler, spacing, and defaults of steps and of
            guidance.
        guidance_interval: Two shares of the noise schedule, 0-1, between which guidance acts; None takes those of the
            preset, else the whole schedule. Steps outside compute half as much.

    Raises:
        UserError: If a name does not exist, or the scheduler has no use for a spacing.
    """

    unet: str | None = None
    lora: list[LoraConfig] = field(default_factory=list)
    vae: str | None = None
    preview_vae: str | None = None
    scheduler: str | None = None
    spacing: Spacing | None = None
    preset: str | None = None
    refiner: str | None = None
    refiner_start: float = 0.8
    guidance_interval: list[float] | None = None

    def __post_init__(self) -> None:
        for name in DECODER_PATHS:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, _path(value, f"backbone.decoder.{name}"))
        number = isinstance(self.refiner_start, Real) and not isinstance(self.refiner_start, bool)
        if not number or not 0.0 < self.refiner_start < 1.0:
            raise UserError(
                f"backbone.decoder.refiner_start={self.refiner_start!r}: must lie between 0 and 1; 0.8 leaves the last "
                "fifth of the noise to the refiner"
            )
        if self.guidance_interval is not None:
            interval = checked_interval(self.guidance_interval, "backbone.decoder.guidance_interval")
            self.guidance_interval = list(interval)
        if isinstance(self.lora, str) or not isinstance(self.lora or [], Sequence):
            raise UserError(f"backbone.decoder.lora={self.lora!r}: {_LORA_FORM}")
        self.lora = [_lora_config(item) for item in self.lora or []]
        for name, choices in (("scheduler", SCHEDULERS), ("preset", PRESETS), ("spacing", SPACINGS)):
            value = getattr(self, name)
            if value is not None:
                one_of(value, choices, f"backbone.decoder.{name}")
        if self.spacing is not None and self.effective_scheduler in OWN_SPACING:
            raise UserError(
                f"backbone.decoder.spacing={self.spacing!r}: the scheduler {self.effective_scheduler!r} has timesteps "
                "of its own; leave the spacing out, or choose another scheduler"
            )

    @property
    def settings(self) -> Preset | None:
        """The preset."""
        return None if self.preset is None else PRESETS[self.preset]

    @property
    def effective_scheduler(self) -> str | None:
        """Name of the scheduler; None for that of the image decoder."""
        return self.scheduler or (self.settings.scheduler if self.settings else None)

    @property
    def effective_spacing(self) -> Spacing | None:
        """Spacing of the timesteps; None for that of the image decoder."""
        if self.spacing is None and self.effective_scheduler in OWN_SPACING:
            return None
        return self.spacing or (self.settings.spacing if self.settings else None)

    @property
    def steps(self) -> int:
        """Denoising steps where no number is given."""
        return self.settings.steps if self.settings else DEFAULT_STEPS

    @property
    def guidance(self) -> float:
        """Guidance scale where none is given."""
        return self.settings.guidance if self.settings else DEFAULT_GUIDANCE

    @property
    def interval(self) -> Interval:
        """Shares of the noise schedule between which guidance acts."""
        if self.guidance_interval is not None:
            return checked_interval(self.guidance_interval, "backbone.decoder.guidance_interval")
        return self.settings.interval if self.settings else WHOLE


def _path(value: object, setting: str) -> str:
    """A path as text.

    Raises:
        UserError: If it is none.
    """
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise UserError(f"{setting}={value!r}: give a path")
    return str(value)


def _lora_config(item: object) -> LoraConfig:
    """An entry of the list of LoRAs.

    Raises:
        UserError: If it has another form.
    """
    if isinstance(item, LoraConfig):
        return item
    if not isinstance(item, Mapping):
        raise UserError(f"backbone.decoder.lora: {item!r} is no LoRA: {_LORA_FORM}")
    for name in item:
        one_of(name, ("path", "weight"), "backbone.decoder.lora: setting")
    if "path" not in item:
        raise UserError(f"backbone.decoder.lora: {dict(item)} names no file: {_LORA_FORM}")
    return LoraConfig(**item)


def decoder_config(settings: Mapping[str, object]) -> DecoderConfig:
    """The configuration in a mapping.

    Raises:
        UserError: If a setting does not exist or has no valid value.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"backbone.decoder={settings!r}: give settings by name, such as preset: fast")
    known = {item.name for item in fields(DecoderConfig)}
    for name in settings:
        one_of(name, tuple(known), "backbone.decoder: setting")
    return DecoderConfig(**settings)  # type: ignore[arg-type]
