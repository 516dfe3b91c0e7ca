"""What `M2ChatPipeline` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.schema import Reply

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "pt")


@dataclass(frozen=True)
class ImagePart:
    """A picture of a reply.

    Args:
        image: Pillow picture, array or tensor, by `output_type`.
        caption: What it was drawn from.
        gate: g of Eq. 3.
        cosine: c, which the gate follows.
    """

    image: Any
    caption: str
    gate: float
    cosine: float


@dataclass(frozen=True)
class PipelineOutput:
    """What the model replied.

    Args:
        segments: Texts and pictures in their order.
        cut_tokens: How much of the conversation did not fit.
        seed: Of a session's reply.
        stopped: Whether it was cut short.
    """

    segments: list[str | ImagePart]
    cut_tokens: int = 0
    seed: int | None = None
    stopped: bool = False

    @property
    def text(self) -> str:
        """All that was said."""
        return " ".join(part for part in self.segments if isinstance(part, str))

    @property
    def images(self) -> list[Any]:
        """The pictures."""
        return [part.image for part in self.segments if isinstance(part, ImagePart)]

    @property
    def gate(self) -> list[float]:
        """G of each picture: 1 follows the words alone, 0 the context picture alone."""
        return [part.gate for part in self.segments if isinstance(part, ImagePart)]


def output_of(reply: Reply, note: Mapping[str, Any], output_type: OutputType) -> PipelineOutput:
    """A reply in the form that was asked for."""
    parts: list[str | ImagePart] = []
    gates = iter(zip(note["gate"], note["cosine"], strict=True))
    for segment, pixels in zip(reply.segments, reply.images, strict=True):
        if segment.answer:
            parts.append(segment.answer)
        if pixels is not None:
            parts.append(ImagePart(_as_type(pixels, output_type), segment.caption or "", *next(gates)))
    return PipelineOutput(parts, note.get("cut_tokens", 0), note.get("seed"), note.get("stopped", False))


def _as_type(pixels: NDArray[np.uint8], output_type: OutputType) -> PILImage | NDArray[np.float32] | torch.Tensor:
    from PIL import Image as Pillow

    if output_type == "pil":
        return Pillow.fromarray(pixels)
    unit: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
    return unit if output_type == "np" else torch.from_numpy(unit).permute(2, 0, 1)
