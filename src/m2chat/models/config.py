"""Settings of a model: paths of the frozen networks and sizes of the trained connector; no scale is a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from os import PathLike
from typing import Any, Literal

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
from m2chat.ranges import check_settings

GateMode = Literal["paper", "learnable", "constant", "off"]
GATE_MODES: tuple[GateMode, ...] = ("paper", "learnable", "constant", "off")


NEW = "new"
"""Value of `BackboneConfig.adapter` for an adapter that is yet to be trained."""
DECODER_PATHS = ("unet", "vae", "preview_vae", "refiner")
"""Settings of `DecoderConfig` that are paths, beside those of the LoRAs."""
MAX_LORA = 10.0
"""Largest factor of a LoRA, of either sign: what is beyond adds nothing but noise."""
_LORA_FORM = "give a list of files with their factors: [{path: style.safetensors, weight: 0.8}]"


@dataclass
class NewAdapterConfig:
    """Sizes of an adapter that is yet to be trained; its widths follow from the backbones.

    LLaMA-Adapter V2 for LLaMA 7B has 10 prompts in the last 31 of 32 layers, 8 visual blocks and 16 visual heads.

    Args:
        prompts: K, prompts of each layer.
        layers: Layers that attend to prompts: the last so many.
        visual_blocks: Blocks of the visual query encoder.
        visual_heads: Heads of each of these blocks; they divide the width of the vision encoder's tokens.
        biases: Whether biases and norms are trained in stage 0 too, as in BIAS-7B; without them the file is of the
            variant of CAPTION-7B.
        lora_rank: Rank of low-rank updates, as in LORA-BIAS-7B; 0 for none.
        seed: Seed of the initial weights.

    Raises:
        UserError: If a number is too small.
    """

    prompts: int
    layers: int
    visual_blocks: int
    visual_heads: int
    biases: bool = True
    lora_rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"prompts": 1, "layers": 1, "visual_blocks": 1, "visual_heads": 1, "lora_rank": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"backbone.new_adapter.{name}={getattr(self, name)}: give {value} or more")


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


@dataclass
class BackboneConfig:
    """Paths of the pretrained networks; ``configs/backbone/`` has those of both scales.

    Args:
        language_model: Folder of a `LlamaForCausalLM` with its tokenizer, or Meta's own folder.
        adapter: LLaMA-Adapter V2 file of any variant, or a full training checkpoint of its code; or ``new`` for one
            that stage 0 trains, of the sizes in `new_adapter`.
        vision_encoder: Folder of an open_clip model, or an open_clip name and ``:`` and its weights' tag or file.
        image_decoder: Folder of a diffusers SDXL (or SD 1.5) pipeline, or SDXL in one ``.safetensors`` file.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture.
        channel_order: ``rgb``, or ``bgr`` for adapter weights trained on swapped channels; a mark in the adapter's
            file takes precedence.
        new_adapter: Sizes of the adapter if `adapter` is ``new``.
        visual_heads: Heads of the visual blocks of an adapter file that does not state them.
        visual_blocks: Number of the visual blocks that an adapter file must have; None for as many as it has.
        allow_foreign_adapter: Whether an adapter file that was made for another language model of the same sizes is
            used nevertheless.
        decoder: Parts that replace those of `image_decoder`, and the way it draws.

    Raises:
        UserError: If `adapter` is ``new`` and its sizes are missing.
    """

    language_model: str
    adapter: str
    vision_encoder: str
    image_decoder: str
    num_image_tokens: int
    channel_order: Literal["rgb", "bgr"] = "rgb"
    new_adapter: NewAdapterConfig | None = None
    visual_heads: int | None = None
    visual_blocks: int | None = None
    allow_foreign_adapter: bool = False
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        # Mappings come out of checkpoints and manifests, which keep JSON or YAML.
        if isinstance(self.new_adapter, Mapping):
            self.new_adapter = NewAdapterConfig(**self.new_adapter)
        if not isinstance(self.decoder, DecoderConfig):
            self.decoder = decoder_config(self.decoder or {})
        if self.adapter == NEW and self.new_adapter is None:
            raise UserError(
                "backbone.adapter='new' needs the sizes of the adapter: set backbone.new_adapter to its prompts, "
                "layers, visual_blocks and visual_heads, as configs/stage0.yaml does"
            )


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


def with_paths(backbone: BackboneConfig, change: Callable[[str], str]) -> BackboneConfig:
    """The same backbones with every path changed.

    Args:
        backbone: Backbones.
        change: Function from the old path to the new one.
    """
    decoder = backbone.decoder
    parts: dict[str, Any] = {name: getattr(decoder, name) for name in DECODER_PATHS}
    parts = {name: path and change(path) for name, path in parts.items()}
    loras = [replace(lora, path=change(lora.path)) for lora in decoder.lora]
    return replace(
        backbone,
        language_model=change(backbone.language_model),
        adapter=backbone.adapter if backbone.adapter == NEW else change(backbone.adapter),
        vision_encoder=change(backbone.vision_encoder),
        image_decoder=change(backbone.image_decoder),
        decoder=replace(decoder, lora=loras, **parts),
    )


@dataclass
class GateConfig:
    """Mixture of the text branch and the image branch (Eq. 3).

    Args:
        mode: ``paper``: the clamped cosine; ``learnable``: a logistic curve of it; ``constant``: `value`;
            ``off``: no image branch.
        value: Share of the text branch in mode ``constant``, 0-1.

    Raises:
        UserError: If the mode is unknown or `value` is outside 0-1.
    """

    mode: GateMode = "learnable"
    value: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in GATE_MODES:
            raise UserError(f"gate.mode={self.mode!r}: choose one of {', '.join(GATE_MODES)}")
        if not 0.0 <= self.value <= 1.0:
            raise UserError(f"gate.value={self.value}: must lie between 0 and 1")


@dataclass
class M3AdapterConfig:
    """Sizes of the M³Adapter; the widths of its inputs and outputs follow from the backbones.

    ``configs/m3adapter/`` has the sizes of both scales.

    Args:
        width: Attention width.
        heads: Attention heads.
        blocks: M, the number of blocks of each branch.
        layers: Language model layers that it reads: -1 is the last, after the final norm. Several are mixed with
            learned softmax weights.
        f_img: Whether the image branch attends to the context picture; if not, it has its queries alone.
        gate: Mixture of the two branches.

    Raises:
        UserError: If a number is out of its range, or the heads do not divide the width.
    """

    width: int
    heads: int
    blocks: int = 2
    layers: tuple[int, ...] = (-1,)
    f_img: bool = True
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check_settings("m3adapter", self, {"width": "width", "heads": "heads", "blocks": "blocks"})
        if self.width % self.heads:
            raise UserError(f"m3adapter.heads={self.heads}: must divide m3adapter.width={self.width}")
