"""What a model is made of: paths of the frozen networks, and the numbers of the learned ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from m2chat.errors import UserError

GateMode = Literal["paper", "learnable", "constant", "off"]
GATE_MODES: tuple[GateMode, ...] = ("paper", "learnable", "constant", "off")


@dataclass
class BackboneConfig:
    """Where the pretrained networks lie; the same layouts at both scales.

    Args:
        language_model: Folder of a `LlamaForCausalLM` with LLaMA's ``tokenizer.model``, or Meta's own folder.
        adapter: LLaMA-Adapter V2 file of any variant, or a full training checkpoint of its code.
        vision_encoder: Folder of an open_clip model, or an open_clip name and ``:`` and its weights' tag or file.
        image_decoder: Folder of a diffusers SDXL (or SD 1.5) pipeline, or SDXL in one ``.safetensors`` file.
        channel_order: ``rgb``, or ``bgr`` for adapter weights trained on swapped channels; a mark in the adapter's
            file goes before it.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture.
    """

    language_model: str = "data/micro/llama"
    adapter: str = "data/micro/adapter/BIAS-micro.pth"
    vision_encoder: str = "data/micro/clip"
    image_decoder: str = "data/micro/sdxl"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    num_image_tokens: int = 8


@dataclass
class GateConfig:
    """How semantics and the picture's own features are mixed (Eq. 3).

    Args:
        mode: ``paper``: the clamped cosine; ``learnable``: a logistic curve of it; ``constant``: `value`;
            ``off``: no image branch.
        value: Share of the semantics in mode ``constant``, 0-1.
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
    """Numbers of the M³Adapter; the widths of what it reads and writes come from the backbones.

    Args:
        width: Attention width.
        heads: Attention heads.
        blocks: M, blocks of each branch.
        layers: Language model layers that it reads: -1 is the last, after the final norm. Several are mixed with
            learned softmax weights.
        f_img: Whether the image branch sees the context picture; without, it has its queries alone.
        gate: How the two branches are mixed.
    """

    width: int = 1536
    heads: int = 24
    blocks: int = 2
    layers: tuple[int, ...] = (-1,)
    f_img: bool = True
    gate: GateConfig = field(default_factory=GateConfig)
