"""Outputs of `M2ChatPipeline`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.pipeline.events import Event, Finished, FinishReason, finish_reason
from m2chat.schema import Picture, Reply

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "pt")


@dataclass(frozen=True)
class OutputImage:
    """A picture of a reply.

    Args:
        image: Pillow picture, array or tensor, as `output_type` asks.
        caption: Caption from which it was drawn.
        gate: g of Eq. 3, 0-1: 1 follows the text alone, 0 the context picture alone.
        cosine: Cosine similarity c of Eq. 3, from which the gate is computed.
    """

    image: Any
    caption: str
    gate: float
    cosine: float

    def __repr__(self) -> str:
        size = getattr(self.image, "size", None) if hasattr(self.image, "save") else tuple(self.image.shape)
        return f"OutputImage({self.caption!r}, {size}, gate={self.gate:.2f})"

    def _repr_html_(self) -> str:
        """The picture with its caption, as notebooks show it."""
        caption = escape(self.caption)
        image = f'<img alt="{caption}" style="min-width:128px;image-rendering:pixelated" src="{self._url()}">'
        line = f"<figcaption>{caption} · gate {self.gate:.2f}</figcaption>"
        return f'<figure style="display:inline-block;margin:4px">{image}{line}</figure>'

    def _url(self) -> str:
        """The picture as a data URL, of whichever type it is."""
        from PIL import Image as Pillow

        picture: Any = self.image
        if not hasattr(picture, "save"):
            unit = np.asarray(picture if isinstance(picture, np.ndarray) else picture.permute(1, 2, 0).cpu())
            picture = Pillow.fromarray((unit * 255).round().astype(np.uint8))
        data = BytesIO()
        picture.save(data, format="png")
        return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"


@dataclass(frozen=True)
class PipelineOutput:
    """A reply.

    Args:
        segments: Texts and pictures in their order.
        cut_tokens: Tokens of the conversation that did not fit.
        seed: Seed of the reply, of a session's replies.
        stopped: Whether the reply was stopped.
        finish_reason: ``length`` if a limit has cut an answer, or a caption, which is then not drawn; else ``stop``.
    """

    segments: list[str | OutputImage]
    cut_tokens: int = 0
    seed: int | None = None
    stopped: bool = False
    finish_reason: FinishReason = "stop"

    def _repr_html_(self) -> str:
        """Texts and pictures in their order, as notebooks show them."""
        parts = (f"<p>{escape(part)}</p>" if isinstance(part, str) else part._repr_html_() for part in self.segments)
        return "".join(parts)

    @property
    def text(self) -> str:
        """All texts, joined by spaces."""
        return " ".join(part for part in self.segments if isinstance(part, str))

    @property
    def pictures(self) -> list[OutputImage]:
        """The pictures with caption and gate."""
        return [part for part in self.segments if isinstance(part, OutputImage)]

    @property
    def images(self) -> list[Any]:
        """The pictures alone."""
        return [part.image for part in self.pictures]

    @property
    def gate(self) -> list[float]:
        """G of each picture: 1 follows the text alone, 0 the context picture alone."""
        return [part.gate for part in self.pictures]


def output_of(reply: Reply, note: Mapping[str, Any], output_type: OutputType) -> PipelineOutput:
    """A reply and its note as `PipelineOutput`."""
    parts: list[str | OutputImage] = []
    gates = iter(zip(note["gate"], note["cosine"], strict=True))
    for segment, pixels in zip(reply.segments, reply.images, strict=True):
        if segment.answer:
            parts.append(segment.answer)
        if pixels is not None:
            parts.append(OutputImage(_as_type(pixels, output_type), segment.caption or "", *next(gates)))
    seed, stopped = note.get("seed"), note.get("stopped", False)
    return PipelineOutput(parts, note.get("cut_tokens", 0), seed, stopped, finish_reason(note))


def whole(events: Iterator[Event]) -> PipelineOutput:
    """Waits for the end of a reply."""
    *_, last = events
    assert isinstance(last, Finished)
    return output_of(last.reply, last.note, "pil")


def _as_type(pixels: Picture, output_type: OutputType) -> PILImage | NDArray[np.float32] | torch.Tensor:
    from PIL import Image as Pillow

    if output_type == "pil":
        return Pillow.fromarray(pixels)
    unit: NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)  # (H, W, 3), 0-1
    return unit if output_type == "np" else torch.from_numpy(unit).permute(2, 0, 1)
