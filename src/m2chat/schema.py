"""Types that every layer shares: conversations, samples, replies, and batches of tensors.

Shapes: B batch, T text tokens, Q queries of the image decoder's text condition, S side of the vision encoder's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Self

    import torch

    from m2chat.places import Places

Picture: TypeAlias = NDArray[np.uint8]
"""RGB, (H, W, 3), 0-255."""
Kind = Literal["caption", "instruct", "dialogue", "edit", "story"]
KINDS: tuple[Kind, ...] = ("caption", "instruct", "dialogue", "edit", "story")
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Image:
    """A picture with its caption.

    Args:
        pixels: RGB, (H, W, 3), 0-255.
        caption: Caption; empty if there is none.
        original_size: Height and width before any resizing, for SDXL's size conditioning.
        crop: Top and left of the crop, in pixels of the resized picture.
        caption_by: Source of the caption: ``alt-text``, ``human``, ``turn``, ``model:<name>``, ...; empty if unknown.
    """

    pixels: Picture
    caption: str = ""
    original_size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    caption_by: str = ""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Args:
        role: ``user`` or ``assistant``.
        parts: Texts, and pictures as indices into `Conversation.images`, in their order.
        loss: Whether a reply is trained on.
        context: Index of the context picture; None for the newest one.
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
class Segment:
    """A part of a reply: text and, unless the caption is None, one picture.

    Args:
        answer: Text for the user; may be empty.
        caption: Caption from which the picture is drawn; None for text without a picture.
    """

    answer: str
    caption: str | None = None


@dataclass(frozen=True)
class Reply:
    """A reply: segments, and a picture or None for each of them.

    Args:
        segments: Texts and captions.
        images: RGB (H, W, 3) of 0-255, or None, one per segment.
    """

    segments: tuple[Segment, ...]
    images: tuple[Picture | None, ...]

    @property
    def texts(self) -> list[str]:
        """The answers that are not empty."""
        return [segment.answer for segment in self.segments if segment.answer.strip()]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures that exist."""
        return [image for image in self.images if image is not None]


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and an assistant, with their pictures.

    Args:
        id: Name. Together with a seed and a turn it decides the noise of generated pictures.
        turns: Turns, oldest first.
        images: Pictures to which the turns point, each pointed to by one turn.
        to_draw: Reply to the last turn where it is given instead of generated: texts, and captions of the pictures to
            draw. Empty if the model decides.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Image, ...] = ()
    to_draw: tuple[Segment, ...] = ()

    def until(self, turn: int) -> Self:
        """The conversation before a turn, with the pictures of the turns that remain.

        Args:
            turn: Index of the first turn to leave out.
        """
        turns = self.turns[:turn]
        # Pictures are numbered in the order of their turns, so those that remain are the first ones.
        return replace(self, turns=turns, images=self.images[: sum(len(item.pictures) for item in turns)])

    def with_reply(self, reply: Reply) -> Self:
        """The conversation with a generated reply behind its last turn."""
        parts: list[str | int] = []
        images = list(self.images)
        for segment, pixels in zip(reply.segments, reply.images, strict=True):
            if segment.answer.strip():
                parts.append(segment.answer)
            if pixels is not None:
                parts.append(len(images))
                images.append(Image(pixels, segment.caption or "", (pixels.shape[0], pixels.shape[1])))
        return replace(self, turns=(*self.turns, Turn("assistant", tuple(parts))), images=tuple(images), to_draw=())


@dataclass(frozen=True)
class Sample(Conversation):
    """A conversation of a data set; a caption pair is one request and one reply.

    Args:
        id: Name, unique in its data set.
        turns: Turns, oldest first.
        images: Pictures to which the turns point.
        to_draw: Empty: a data set holds whole replies.
        kind: Task that it is an example of.
        source: Name of the data set.
        meta: Further entries of the shard; never read by the model.
        license: Licence; empty if unknown.
    """

    kind: Kind = field(kw_only=True)
    source: str = field(kw_only=True)
    meta: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    license: str = field(default="", kw_only=True)


def in_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures of 0-255, (..., 3, H, W), as input of the image decoder: floats in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def normalised(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures of 0-255 as input of the vision encoder: floats of about zero mean and unit variance.

    Args:
        pixels: uint8, (..., 3, H, W).
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
    """
    floats = pixels.float()
    means, stds = (floats.new_tensor(values)[:, None, None] for values in (mean, std))
    return floats.div_(255).sub_(means).div_(stds)


@dataclass
class FrozenFeatures:
    """Outputs of the frozen networks for a batch, which may be kept (`m2chat data features`).

    Args:
        states: States of the language model, (B, S, D), or (L, B, S, D) of several layers: of whole sequences, or,
            with `mask`, of the tokens alone that the M³Adapter reads. None in stage 2, where they change.
        e_clip: Target of h_align, (B, Q, C); None if it is to be computed from the batch's captions.
        e_pclip: Target of h_palign, (B, P).
        latents: Latents of the target pictures, (B, c, h, w); None where nothing is learned from them.
        mask: True at the caption and image tokens among the states, (B, S) bool; None for the batch's masks.
        f_img: CLIP tokens of the context pictures, (B, I, W), in stage 2; of an empty picture where there is none.
    """

    states: torch.Tensor | None
    e_clip: torch.Tensor | None
    e_pclip: torch.Tensor | None
    latents: torch.Tensor | None
    mask: torch.Tensor | None = None
    f_img: torch.Tensor | None = None

    def select(self, rows: list[int] | torch.Tensor) -> FrozenFeatures:
        """The features of some of the samples."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        chosen = {name: None if value is None else value[rows] for name, value in values.items() if name != "states"}
        states = self.states
        if states is not None:
            states = states[:, rows] if states.ndim == 4 else states[rows]
        return FrozenFeatures(states=states, **chosen)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> FrozenFeatures:
        """The features with every tensor changed, such as moved to another device."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return FrozenFeatures(**changed)


@dataclass
class Batch:
    """Input of training and evaluation. Fields that are tensors share the first dimension B.

    A loader makes batches with pictures of uint8, 0-255, a quarter of the bytes of float32. `to` moves a batch to the
    networks' device, where `ready` turns its pictures into the floats described below; Lightning always calls `to`.

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
        target_pixels: Reference picture, in [-1, 1], zeros where there is none, (B, 3, H, W).
        has_target: Whether there is a picture to draw, (B,) bool.
        time_ids: Original size, crop and target size of the target picture, (B, 6).
        caption_ids: Target caption for the first text encoder of the image decoder, (B, Q).
        caption_ids_2: The same for the second, (B, Q).
        samples: Samples, for evaluation and logs.
        turns: Index of the reply within each sample's turns.
        cut_tokens: Prompt tokens that did not fit, one count per sample.
        normalisation: Mean and standard deviation of each channel, in [0, 1], with which `ready` normalises
            `context_pixels`; None if the batch has no context picture.
        features: Outputs of the frozen networks, from a feature cache. A batch of stage 1 to train on then has neither
            tokens nor pictures: those dimensions are 0 in their fields.

    Attributes:
        places: Where in the batch is what; None until `located` is asked for it, and again in a changed copy.
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
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    features: FrozenFeatures | None = None
    places: Places | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def located(self) -> Places:
        """Where in the batch is what: found once, on the CPU, before the batch goes to another device."""
        if self.places is None:
            from m2chat.places import Places  # torch, which what reads words does without

            read = self.caption_mask | self.image_mask
            whole = (self.input_ids, self.attention_mask, self.labels, read, self.has_context, self.has_target)
            device = self.input_ids.device
            found = Places.of(*(tensor.cpu() for tensor in whole))
            self.places = found if device.type == "cpu" else found.each(lambda tensor: tensor.to(device))
        return self.places

    def select(self, rows: list[int]) -> Batch:
        """The batch of some of the samples."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("normalisation", "features", "places"):
                changed[item.name] = [value[row] for row in rows] if isinstance(value, list) else value[rows]
        features = None if self.features is None else self.features.select(rows)
        return replace(self, **changed, features=features)

    def ready(self) -> Batch:
        """The same batch with its pictures as floats, the networks' input; the batch itself if they already are."""
        if self.target_pixels.is_floating_point():
            return self
        # Both scalings would turn the zeros of missing pictures into something else.
        target = in_unit_range(self.target_pixels).masked_fill_(~self.has_target[:, None, None, None], 0)
        if self.normalisation is None:
            context = target.new_zeros(self.context_pixels.shape)
        else:
            context = normalised(self.context_pixels, *self.normalisation)
            context.masked_fill_(~self.has_context[:, None, None, None], 0)
        ready = replace(self, context_pixels=context, target_pixels=target)
        ready.places = self.places
        return ready

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in pinned memory; the data loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device, `ready` there."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking)).ready()

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if hasattr(value, "to")}
        features = None if self.features is None else self.features.each(change)
        places = self.located().each(change)
        batch = replace(self, **changed, features=features)
        batch.places = places
        return batch


@dataclass(frozen=True)
class Prediction:
    """A generated reply with its reference: the input of metrics.

    Args:
        id: Name, unique in the evaluation: the sample's id and the turn, ``"<sample id>#<turn>"``.
        kind: Kind of the sample.
        source: Data set of the sample.
        request: Text of the user's last turn.
        reference: Reply of the data set.
        generated: Reply of the model.
        context: Context picture, if there is one.
        meta: `meta` of the sample, and the notes of generation (``gate``, ``cosine``, ``cut_tokens``, ...).
    """

    id: str
    kind: Kind
    source: str
    request: str
    reference: Reply
    generated: Reply
    context: Picture | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
