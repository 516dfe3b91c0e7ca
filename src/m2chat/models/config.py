"""Settings of a model: paths of the frozen networks and sizes of the trained connector; no scale is a default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from m2chat.errors import UserError

GateMode = Literal["paper", "learnable", "constant", "off"]
GATE_MODES: tuple[GateMode, ...] = ("paper", "learnable", "constant", "off")


@dataclass
class BackboneConfig:
    """Paths of the pretrained networks; ``configs/backbone/`` has those of both scales.

    Args:
        language_model: Folder of a `LlamaForCausalLM` with its tokenizer, or Meta's own folder.
        adapter: LLaMA-Adapter V2 file of any variant, or a full training checkpoint of its code.
        vision_encoder: Folder of an open_clip model, or an open_clip name and ``:`` and its weights' tag or file.
        image_decoder: Folder of a diffusers SDXL (or SD 1.5) pipeline, or SDXL in one ``.safetensors`` file.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture.
        channel_order: ``rgb``, or ``bgr`` for adapter weights trained on swapped channels; a mark in the adapter's
            file takes precedence.
    """

    language_model: str
    adapter: str
    vision_encoder: str
    image_decoder: str
    num_image_tokens: int
    channel_order: Literal["rgb", "bgr"] = "rgb"


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
    """

    width: int
    heads: int
    blocks: int = 2
    layers: tuple[int, ...] = (-1,)
    f_img: bool = True
    gate: GateConfig = field(default_factory=GateConfig)
