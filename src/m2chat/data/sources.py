"""Samples from the files of a shard and back: the project's schema ``m2c/1``, and img2dataset's caption pairs.

An ``m2c/1`` sample is a ``.json`` (see `Record`) and its pictures ``img0.png``, ``img1.jpg``, ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from m2chat.data.images import BadImage, load_whole, save_png
from m2chat.data.record import SCHEMA, ImagePartRecord, ImageRecord, Record, TextPartRecord, TurnRecord, parse_json
from m2chat.schema import Image, Kind, Picture, Sample, Turn
from m2chat.text.view import replies_of

PICTURES = ("jpg", "png", "jpeg", "webp")
"""Suffixes of img2dataset's picture; the first that exists is taken."""
MAX_TEXT = 4 * 2**20
"""Longest text or JSON member that is read, in bytes."""


Loader = Callable[[bytes], tuple[Picture, tuple[int, int]]]
"""Decoder of a picture: gives its pixels, which may be scaled down, and its height and width."""


class BadSample(ValueError):
    """A sample that cannot be used.

    Args:
        reason: Reason, in words that are the same for all samples with the same fault, so that they can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_record(members: Mapping[str, bytes]) -> Record | None:
    """The JSON of an ``m2c/1`` sample; None if it is of another kind, such as img2dataset's.

    Raises:
        BadSample: If it is broken.
    """
    return _checked(json_of(members))


def json_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of a sample's JSON, of any schema; empty if it has none.

    Raises:
        BadSample: If it is broken, too large, or no object.
    """
    data = members.get("json", b"{}")
    if len(data) > MAX_TEXT:
        raise BadSample("json too large")
    try:
        record = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("broken json") from error
    if not isinstance(record, dict):
        raise BadSample("json is not an object")
    return record


def _checked(record: Mapping[str, Any]) -> Record | None:
    """The record of an ``m2c/1`` sample; None if the JSON is of another kind."""
    from pydantic import ValidationError

    if record.get("schema") != SCHEMA:
        return None
    try:
        return Record.model_validate(record)
    except ValidationError as error:
        raise BadSample(f"json is not {SCHEMA}") from error


def _skeleton(record: Record, key: str, source: str) -> Sample:
    """An ``m2c/1`` sample without its pictures."""
    name = record.source or source
    sample = Sample(
        record.id or f"{name}/{key}",
        tuple(_turn(turn) for turn in record.turns),
        kind=record.kind,
        source=name,
        meta=record.meta or {},
        license=record.license or "",
    )
    require_reply(sample)
    return sample


def require_reply(sample: Sample) -> None:
    """Checks what every conversation must have.

    Raises:
        BadSample: If it has no reply to learn from, or the first turn is not the user's.
    """
    if not replies_of(sample):
        raise BadSample("no reply to learn from")
    if sample.turns[0].role != "user":
        raise BadSample("the first turn is not the user's")


def _turn(record: TurnRecord) -> Turn:
    parts = tuple(part.text if isinstance(part, TextPartRecord) else part.image for part in record.content)
    return Turn(record.role, parts, record.loss, record.context)


def outline(members: Mapping[str, bytes]) -> tuple[Kind, list[int]]:
    """Kind and replies of a sample; its pictures are not read.

    Args:
        members: The sample's ``json`` if it has one; further members are ignored.

    Returns:
        The kind, and the indices of the turns that are replies to learn from.

    Raises:
        BadSample: If the JSON is broken.
    """
    record = read_record(members)
    if record is None:
        return "caption", [1]
    sample = _skeleton(record, "", "")
    return sample.kind, replies_of(sample)


def sample_of(members: Mapping[str, bytes], key: str, source: str, load: Loader = load_whole) -> Sample:
    """Reads a sample.

    Args:
        members: Suffix (``json``, ``img0.png``, ``jpg``, ...) to the bytes of the file.
        key: Name of the sample in its shard.
        source: Name of the data set, for samples that do not state one.
        load: Decoder of the pictures.

    Raises:
        BadSample: If it is broken or incomplete.
    """
    content = json_of(members)
    record = _checked(content)
    try:
        if record is not None:
            return _m2c(record, members, key, source, load)
        return _img2dataset(content, members, key, source, load)
    except BadImage as error:
        raise BadSample(error.reason) from error


def _m2c(record: Record, members: Mapping[str, bytes], key: str, source: str, load: Loader) -> Sample:
    sample = _skeleton(record, key, source)
    images = []
    for entry in record.images:
        if entry.member not in members:
            raise BadSample("picture missing")
        pixels, whole = load(members[entry.member])
        crop = entry.crop or (0, 0)
        if any(crop) and pixels.shape[:2] != whole:  # in pixels of the stored picture
            top, left = (round(place * pixels.shape[0] / whole[0]) for place in crop)
            crop = top, left
        caption, by, in_full = entry.caption or "", entry.caption_by or "", entry.full_caption or ""
        images.append(Image(pixels, caption, entry.original_size or whole, crop, by, in_full))
    return replace(sample, images=tuple(images))


def _img2dataset(
    record: Mapping[str, Any], members: Mapping[str, bytes], key: str, source: str, load: Loader
) -> Sample:
    """A caption pair: its request is to draw the caption."""
    picture = members[pair_picture(members)]
    caption, size = pair_facts(members, record)
    pixels, whole = load(picture)
    return caption_sample(f"{source}/{key}", source, Image(pixels, caption, size or whole), record)


def pair_picture(suffixes: Collection[str]) -> str:
    """Suffix of the picture among those of an img2dataset sample.

    Raises:
        BadSample: If there is none.
    """
    found = next((suffix for suffix in PICTURES if suffix in suffixes), None)
    if found is None:
        raise BadSample("no picture")
    return found


def pair_facts(members: Mapping[str, bytes], record: Mapping[str, Any]) -> tuple[str, tuple[int, int] | None]:
    """Caption and original size of an img2dataset sample.

    Args:
        members: Files of the sample; only ``txt`` is read.
        record: Content of its JSON.

    Returns:
        The caption; and height and width before any resizing, in pixels, None where they are not recorded.

    Raises:
        BadSample: If there is no caption, or the size is no number.
    """
    if not (caption := pair_caption(members, record)):
        raise BadSample("no caption")
    try:
        height, width = (int(record.get(f"original_{side}") or 0) for side in ("height", "width"))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadSample("original size is not a number") from error
    return caption, (height, width) if height > 0 and width > 0 else None


def pair_caption(members: Mapping[str, bytes], record: Mapping[str, Any]) -> str:
    """Caption of an img2dataset sample, empty if there is none; its text file, if any, repeats that of the JSON."""
    # Bytes that are no UTF-8 spoil a letter, not the sample.
    text = members["txt"][:MAX_TEXT].decode(errors="replace") if "txt" in members else record.get("caption")
    return one_line(text)


def one_line(text: Any) -> str:
    """`clean_text` with single spaces and no line breaks."""
    return " ".join(clean_text(text).split())


def clean_text(text: Any) -> str:
    """A text without NUL and without halves of surrogate pairs; empty for anything that is no text."""
    if not isinstance(text, str):
        return ""
    return text.replace("\0", " ").encode(errors="replace").decode().strip()


def caption_sample(name: str, source: str, image: Image, meta: Mapping[str, Any]) -> Sample:
    """The conversation of a caption pair: the user requests the caption, and the picture is the reply.

    Args:
        name: Id of the sample.
        source: Name of the data set.
        image: Picture with its caption.
        meta: Further facts.
    """
    return Sample(
        name, caption_turns(f"Draw {image.caption}"), (image,), kind="caption", source=source, meta=dict(meta)
    )


def caption_turns(request: str) -> tuple[Turn, Turn]:
    """A request in text, and the picture alone as the reply."""
    return Turn("user", (request,)), Turn("assistant", (0,))


def to_members(sample: Sample) -> dict[str, bytes]:
    """Files of an ``m2c/1`` sample: the inverse of `sample_of`.

    Returns:
        Suffix to bytes: ``json`` and one lossless ``img<k>.png`` per picture.
    """
    members = {f"img{index}.png": save_png(image.pixels) for index, image in enumerate(sample.images)}
    images = [
        _image_record(f"img{index}.png", image, members[f"img{index}.png"]) for index, image in enumerate(sample.images)
    ]
    members["json"] = to_record(sample, images).to_json()
    return members


def to_record(sample: Sample, images: Sequence[ImageRecord]) -> Record:
    """The record of a sample whose pictures are already files."""
    return Record(
        schema=SCHEMA,
        kind=sample.kind,
        id=sample.id,
        source=sample.source,
        license=sample.license or None,
        images=tuple(images),
        turns=tuple(_turn_record(turn) for turn in sample.turns),
        meta=dict(sample.meta),
    )


def _image_record(member: str, image: Image, data: bytes) -> ImageRecord:
    height, width = image.pixels.shape[:2]
    # (0, 0) means unknown: then it is the size of the stored picture.
    original_height, original_width = image.original_size if all(image.original_size) else (height, width)
    return ImageRecord(
        member=member,
        width=width,
        height=height,
        original_width=original_width,
        original_height=original_height,
        crop=image.crop,
        caption=image.caption,
        caption_by=image.caption_by or None,
        full_caption=image.full_caption or None,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _turn_record(turn: Turn) -> TurnRecord:
    content = tuple(
        TextPartRecord(text=part) if isinstance(part, str) else ImagePartRecord(image=part) for part in turn.parts
    )
    return TurnRecord(role=turn.role, content=content, loss=turn.loss, context=turn.context)
