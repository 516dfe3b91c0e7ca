"""Settings of a model: paths of the frozen networks and sizes of the trained connector; no scale is a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from m2chat.errors import UserError
from m2chat.models.decoder_config import DECODER_PATHS, DecoderConfig, decoder_config
from m2chat.ranges import check_settings

GateMode = Literal["paper", "learnable", "constant", "off"]
GATE_MODES: tuple[GateMode, ...] = ("paper", "learnable", "constant", "off")


NEW = "new"
"""Value of `BackboneConfig.adapter` for an adapter that is yet to be trained."""


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
class NewLoraConfig:
    """Low-rank updates, as LORA-BIAS-7B has them, beside an adapter file that has none.

    They start at zero, and the stages that train the adapter train them: stage 2, and stage 0 if it goes on from a
    file, which has them from then on.

    Args:
        rank: Rank; LORA-BIAS-7B's is 16.
        layers: Layers that have them: the last so many; None for all.
        seed: Seed of the initial weights.

    Raises:
        UserError: If a number is too small.
    """

    rank: int
    layers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("layers", self.layers)):
            if not (isinstance(value, int) and value >= 1) and (name, value) != ("layers", None):
                raise UserError(f"backbone.new_lora.{name}={value!r}: give a whole number, 1 or more")


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
        new_lora: Low-rank updates to train beside an adapter file that has none; None for none.
        visual_heads: Heads of the visual blocks of an adapter file that does not state them.
        visual_blocks: Number of the visual blocks that an adapter file must have; None for as many as it has.
        allow_foreign_adapter: Whether an adapter file that was made for another language model of the same sizes is
            used nevertheless.
        decoder: Parts that replace those of `image_decoder`, and the way it draws.

    Raises:
        UserError: If `adapter` is ``new`` and its sizes are missing, or it has `new_lora` too.
    """

    language_model: str
    adapter: str
    vision_encoder: str
    image_decoder: str
    num_image_tokens: int
    channel_order: Literal["rgb", "bgr"] = "rgb"
    new_adapter: NewAdapterConfig | None = None
    new_lora: NewLoraConfig | None = None
    visual_heads: int | None = None
    visual_blocks: int | None = None
    allow_foreign_adapter: bool = False
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        # Mappings come out of checkpoints and manifests, which keep JSON or YAML.
        if isinstance(self.new_adapter, Mapping):
            self.new_adapter = NewAdapterConfig(**self.new_adapter)
        if isinstance(self.new_lora, Mapping):
            self.new_lora = NewLoraConfig(**self.new_lora)
        if not isinstance(self.decoder, DecoderConfig):
            self.decoder = decoder_config(self.decoder or {})
        if self.adapter == NEW and self.new_adapter is None:
            raise UserError(
                "backbone.adapter='new' needs the sizes of the adapter: set backbone.new_adapter to its prompts, "
                "layers, visual_blocks and visual_heads, as configs/stage0.yaml does"
            )
        if self.adapter == NEW and self.new_lora is not None:
            raise UserError(
                "backbone.new_lora is for an adapter file that has no low-rank updates; to train them with a new "
                "adapter set backbone.new_adapter.lora_rank"
            )


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
        positions: Number of learned positions that are added to what the text branch reads; 0 for none.
        f_img: Whether the image branch attends to the context picture; if not, it has its queries alone.
        gate: Mixture of the two branches.

    Raises:
        UserError: If a number is out of its range, or the heads do not divide the width.
    """

    width: int
    heads: int
    blocks: int = 2
    layers: tuple[int, ...] = (-1,)
    positions: int = 0
    f_img: bool = True
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check_settings(
            "m3adapter", self, {"width": "width", "heads": "heads", "blocks": "blocks", "positions": "positions"}
        )
        if self.width % self.heads:
            raise UserError(f"m3adapter.heads={self.heads}: must divide m3adapter.width={self.width}")
