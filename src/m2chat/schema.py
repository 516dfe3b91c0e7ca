"""The words that every layer shares: samples of conversation, and batches of tensors.

Shapes: B batch, T text tokens, Q queries of the image decoder's text condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Kind = Literal["caption", "instruct", "dialogue", "edit", "story"]
KINDS: tuple[Kind, ...] = ("caption", "instruct", "dialogue", "edit", "story")
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture and what is known of it.

    Args:
        pixels: RGB, (H, W, 3), 0-255.
        caption: What it shows; empty if nobody has said.
        original_size: Height and width before any resizing, for SDXL's size conditioning.
        crop: Top and left of the crop that was taken, in pixels of the resized picture.
        caption_by: Who captioned it: ``alt-text``, ``human``, ``turn``, ``model:<name>``, ...; empty if unknown.
    """

    pixels: NDArray[np.uint8]
    caption: str = ""
    original_size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    caption_by: str = ""


@dataclass(frozen=True)
class Turn:
    """What one side says at once.

    Args:
        role: ``user`` or ``assistant``.
        parts: Texts, and pictures as indices into `Sample.images`, in the order in which they stand.
        loss: Whether a reply may be learned from.
        context: Index of the picture that the turn refers to; None means the newest.
    """

    role: Role
    parts: tuple[str | int, ...]
    loss: bool = True
    context: int | None = None

    @property
    def text(self) -> str:
        """The turn's texts, joined by spaces."""
        return " ".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def pictures(self) -> tuple[int, ...]:
        """Indices of the turn's pictures."""
        return tuple(part for part in self.parts if isinstance(part, int))


@dataclass(frozen=True)
class Sample:
    """One conversation; a caption pair is a conversation of one request and one reply.

    Args:
        id: Unique in its data set.
        kind: What it teaches.
        source: Name of the data set.
        turns: In the order in which they were said.
        images: Pictures that the turns point to.
        meta: Whatever else the shard knew; never read by the model.
        license: Under which terms it may be used; empty if unknown.
    """

    id: str
    kind: Kind
    source: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""


@dataclass(frozen=True)
class Segment:
    """A reply's unit: some text and, unless the caption is None, one picture.

    Args:
        answer: What is said; may be empty.
        caption: The words from which the picture is drawn; None for text without a picture.
    """

    answer: str
    caption: str | None = None


def in_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures of 0-255, (..., 3, H, W), as the image decoder wants them: floats in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def normalised(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures of 0-255 as the vision encoder wants them: floats.

    Args:
        pixels: uint8, (..., 3, H, W).
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
    """
    floats = pixels.float()
    means, stds = (floats.new_tensor(values)[:, None, None] for values in (mean, std))
    return floats.div_(255).sub_(means).div_(stds)


@dataclass
class Batch:
    """What a model is trained and evaluated on. Fields that are tensors share the first dimension B.

    A loader makes batches with pictures of uint8, 0-255: a quarter of the bytes travel. `to` brings a batch to the
    networks' device and `ready` makes of its pictures what the arguments below promise; Lightning calls `to` always.

    Args:
        input_ids: Prompt and response, right-padded, (B, T).
        attention_mask: True at real tokens, (B, T) bool.
        labels: `input_ids` where the language loss applies, else -100, (B, T).
        answer_mask: True at the answer tokens of the target segment, (B, T) bool.
        caption_mask: True at its caption tokens, (B, T) bool.
        image_mask: True at its N ``<|img|>`` tokens, (B, T) bool.
        context_pixels: Context picture, normalised for the vision encoder, zeros where there is none,
            (B, 3, S, S).
        has_context: Whether there is a context picture, (B,) bool.
        target_pixels: Picture to draw, in [-1, 1], zeros where there is none, (B, 3, H, W).
        has_target: Whether there is a picture to draw, (B,) bool.
        time_ids: Original size, crop and target size of the target picture, (B, 6).
        caption_ids: Target caption for the first text encoder of the image decoder, (B, Q).
        caption_ids_2: The same for the second, (B, Q).
        samples: The conversations themselves, for evaluation and logs.
        turns: Index of the reply within each sample's turns.
        cut_tokens: Prompt tokens that did not fit, one count a sample.
        eye: Mean and deviation of each channel, in [0, 1], by which `ready` normalises `context_pixels`; None if
            the batch has no context picture.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    answer_mask: torch.Tensor
    caption_mask: torch.Tensor
    image_mask: torch.Tensor
    context_pixels: torch.Tensor
    has_context: torch.Tensor
    target_pixels: torch.Tensor
    has_target: torch.Tensor
    time_ids: torch.Tensor
    caption_ids: torch.Tensor
    caption_ids_2: torch.Tensor
    samples: list[Sample] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    cut_tokens: list[int] = field(default_factory=list)
    eye: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def select(self, rows: list[int]) -> Batch:
        """The batch of some of the samples."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "eye":
                changed[item.name] = [value[row] for row in rows] if isinstance(value, list) else value[rows]
        return replace(self, **changed)

    def ready(self) -> Batch:
        """The same batch with its pictures as floats, as the networks want them; itself if they already are."""
        if self.target_pixels.is_floating_point():
            return self
        # Where there is no picture, zero stays zero.
        target = in_unit_range(self.target_pixels).masked_fill_(~self.has_target[:, None, None, None], 0)
        if self.eye is None:
            context = target.new_zeros(self.context_pixels.shape)
        else:
            context = normalised(self.context_pixels, *self.eye).masked_fill_(~self.has_context[:, None, None, None], 0)
        return replace(self, context_pixels=context, target_pixels=target)

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in pinned memory; the data loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device, `ready` there."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking)).ready()

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if hasattr(value, "to")}
        return replace(self, **changed)


@dataclass(frozen=True)
class Reply:
    """What one side said back: segments, and a picture for each of them or None.

    Args:
        segments: Texts and captions.
        images: RGB (H, W, 3) of 0-255, or None, one a segment.
    """

    segments: tuple[Segment, ...]
    images: tuple[NDArray[np.uint8] | None, ...]

    @property
    def texts(self) -> list[str]:
        """The answers that are not empty."""
        return [segment.answer for segment in self.segments if segment.answer.strip()]

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        """The pictures that exist."""
        return [image for image in self.images if image is not None]


@dataclass(frozen=True)
class Prediction:
    """A generated reply beside the true one: what evaluation works on.

    Args:
        id: Unique in the evaluation: the sample's id and the turn, ``"<sample id>#<turn>"``.
        kind: Of the sample.
        source: Of the sample.
        request: What the user said, as text.
        reference: The true reply.
        generated: The model's.
        context: The context picture, if there is one.
        meta: The sample's `meta`, and what generation reported (``gate``, ``cosine``, ``cut_tokens``, ...).
    """

    id: str
    kind: Kind
    source: str
    request: str
    reference: Reply
    generated: Reply
    context: NDArray[np.uint8] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
