"""The schema ``m2c/1`` of a sample's JSON. Reading, writing and converting all go through it.

Turns have a ``role`` and a list of typed ``content`` parts, as the chat templates of language models do.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator
from pydantic_core import from_json

from m2chat.schema import Kind, Role

SCHEMA: Literal["m2c/1"] = "m2c/1"
BY_TURN = "turn"
"""Origin of a caption that is only the text of the picture's turn."""


def parse_json(data: bytes) -> Any:
    """The content of JSON, several times as fast as `json.loads`, and of everything that this reads.

    Raises:
        ValueError: If it is broken.
        RecursionError: If it is nested too deeply.
    """
    try:
        return from_json(data)
    except ValueError:  # it refuses half of a surrogate pair, and encodings other than UTF-8
        return json.loads(data)


class _Frozen(BaseModel):
    # Unknown keys are ignored: a later version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPartRecord(_Frozen):
    """A text within a turn.

    Args:
        text: Text; names of special tokens in it, such as ``<|img|>``, are ordinary text.
    """

    type: Literal["text"] = "text"
    text: str


class ImagePartRecord(_Frozen):
    """A picture within a turn.

    Args:
        image: Index into `Record.images`.
    """

    type: Literal["image"] = "image"
    image: StrictInt


class TurnRecord(_Frozen):
    """A turn.

    Args:
        role: ``user`` or ``assistant``.
        content: Texts and pictures in reading order.
        loss: Whether a reply may be learned from.
        context: Index of the picture that the turn refers to; None means the newest.
    """

    role: Role
    content: tuple[Annotated[TextPartRecord | ImagePartRecord, Field(discriminator="type")], ...]
    loss: bool = True
    context: StrictInt | None = None

    def pictures(self) -> list[int]:
        """Indices of all pictures that it refers to."""
        named = [part.image for part in self.content if isinstance(part, ImagePartRecord)]
        return named if self.context is None else [*named, self.context]


class ImageRecord(_Frozen):
    """A picture.

    Args:
        member: Suffix of its file in the shard: ``img0.jpg``.
        width: Width of the stored picture, in pixels.
        height: Height of the stored picture, in pixels.
        original_width: Width before any resizing, in pixels; that of the stored picture if missing.
        original_height: Height before any resizing, in pixels; that of the stored picture if missing.
        crop: Top and left of the crop that was taken, in pixels at the scale of the stored picture.
        caption: Caption; empty or missing if unknown.
        caption_by: Origin of the caption: ``alt-text``, ``human``, ``file``, ``turn``, ``model:<name>``; None if
            unknown.
        full_caption: The caption with what it leaves to the context picture, the target of L_align; missing if it
            leaves out nothing.
        sha256: SHA-256 of the stored file, in hexadecimal digits.
        media_key: Name in the data set that it comes from.
    """

    member: str
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    crop: tuple[int, int] | None = None
    caption: str | None = None
    caption_by: str | None = None
    full_caption: str | None = None
    sha256: str | None = None
    media_key: str | None = None

    @property
    def is_captioned(self) -> bool:
        """Whether it has a caption that describes it; the text of its turn does not count."""
        return bool(self.caption) and self.caption_by != BY_TURN

    @property
    def original_size(self) -> tuple[int, int] | None:
        """Height and width before any resizing, in pixels; None where they are not recorded."""
        height, width = self.original_height or 0, self.original_width or 0
        return (height, width) if height > 0 and width > 0 else None


class Record(_Frozen):
    """A sample.

    Args:
        schema_: Always ``m2c/1``.
        kind: Kind of conversation.
        id: Id, unique in its data set; ``<source>/<key>`` if missing.
        source: Name of the data set; that of the configuration if missing.
        license: Terms of use.
        images: Pictures that the turns refer to by index.
        turns: Turns in their order.
        meta: Further facts; never read by the model.
    """

    schema_: Literal["m2c/1"] = Field(SCHEMA, alias="schema")
    kind: Kind
    id: str | None = None
    source: str | None = None
    license: str | None = None
    images: tuple[ImageRecord, ...]
    turns: tuple[TurnRecord, ...]
    meta: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _pictures_exist(self) -> Self:
        for turn in self.turns:
            for picture in turn.pictures():
                if not 0 <= picture < len(self.images):
                    raise ValueError(f"picture {picture} of {len(self.images)}")
        return self

    def to_json(self) -> bytes:
        """The bytes of its file: missing values are left out, the order of keys is that of the schema."""
        record = self.model_dump(by_alias=True, exclude_none=True)
        # Half of a surrogate pair, as JSON may hold it, has no UTF-8: it becomes a question mark.
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
