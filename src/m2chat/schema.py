"""Types that all layers share: conversations, samples, replies, predictions. `m2chat.batch` has tensors of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Self


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
        full_caption: The caption with what it leaves to the context picture: the target of L_align. Empty if it leaves
            out nothing.
    """

    pixels: Picture
    caption: str = ""
    original_size: tuple[int, int] = (0, 0)
    crop: tuple[int, int] = (0, 0)
    caption_by: str = ""
    full_caption: str = ""


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
