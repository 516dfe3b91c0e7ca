"""The schema ``m2c/1``: what the JSON of a sample holds. Reading, writing and converting all go through it.

Turns have a ``role`` and a list of typed ``content`` parts, as the chat templates of language models do.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from m2chat.schema import Kind, Role

SCHEMA: Literal["m2c/1"] = "m2c/1"
BY_TURN = "turn"
"""Who captioned a picture for want of anybody better: the words said beside it."""


class _Part(BaseModel):
    # Keys that nobody has heard of are ignored: a later version may add some.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Part):
    """Words, as they were said.

    Args:
        text: Whatever it says, ``<|img|>`` too, it stays text.
    """

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Part):
    """A picture of the sample.

    Args:
        image: Index into `Record.images`.
    """

    type: Literal["image"] = "image"
    image: StrictInt


class TurnRecord(_Part):
    """What one side says at once.

    Args:
        role: ``user`` or ``assistant``.
        content: Texts and pictures in reading order.
        loss: Whether a reply may be learned from.
        context: Index of the picture that the turn refers to; None means the newest.
    """

    role: Role
    content: tuple[Annotated[TextPart | ImagePart, Field(discriminator="type")], ...]
    loss: bool = True
    context: StrictInt | None = None

    def pictures(self) -> list[int]:
        """Indices of all pictures that it names."""
        named = [part.image for part in self.content if isinstance(part, ImagePart)]
        return named if self.context is None else [*named, self.context]


class ImageRecord(_Part):
    """A picture.

    Args:
        member: Suffix of its file in the shard: ``img0.jpg``.
        width: Of the stored picture, in pixels.
        height: Of the stored picture, in pixels.
        original_width: Before any resizing; the picture's own if missing.
        original_height: Before any resizing; the picture's own if missing.
        crop: Top and left of the crop that was taken, at the scale of the stored picture.
        caption: What it shows; empty if nobody has said.
        caption_by: ``alt-text``, ``human``, ``file``, ``turn``, ``model:<name>``; None if unknown.
        sha256: Of the stored file.
        media_key: Its name in the data set that it comes from.
    """

    member: str
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    crop: tuple[int, int] | None = None
    caption: str | None = None
    caption_by: str | None = None
    sha256: str | None = None
    media_key: str | None = None

    @property
    def is_captioned(self) -> bool:
        """Whether it has a caption that deserves the name."""
        return bool(self.caption) and self.caption_by != BY_TURN

    @property
    def original_size(self) -> tuple[int, int] | None:
        """Height and width before any resizing, None where nobody has noted them."""
        height, width = self.original_height or 0, self.original_width or 0
        return (height, width) if height > 0 and width > 0 else None


class Record(_Part):
    """A sample.

    Args:
        schema_: Always ``m2c/1``.
        kind: What it teaches.
        id: Unique in its data set; ``<source>/<key>`` if missing.
        source: Name of the data set; that of the configuration if missing.
        license: Under which terms it may be used.
        images: Its pictures.
        turns: In the order in which they were said.
        meta: Whatever else is known; never read by the model.
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
        """The bytes of its file: what is not known is left out, the order of keys is that of the schema."""
        record = self.model_dump(by_alias=True, exclude_none=True)
        # Half of a surrogate pair, as JSON may hold it, has no UTF-8: it becomes a question mark.
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
