"""What the files of one shard member group mean: ``m2c/1`` samples, and img2dataset's as they lie on disk.

An ``m2c/1`` sample is a ``.json`` and its pictures ``img0.png``, ``img1.jpg``, ... (see `to_members`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from m2chat.data.images import BadImage, load_image, save_png
from m2chat.schema import KINDS, Image, Kind, Role, Sample, Turn
from m2chat.text.view import replies_of

SCHEMA = "m2c/1"
PICTURES = ("jpg", "png", "jpeg", "webp")
"""Members that hold img2dataset's picture, the first that exists is taken."""
MAX_TEXT = 4 * 2**20
"""Longest text or JSON member that is read, in bytes."""


class BadSample(ValueError):
    """A sample that cannot be used.

    Args:
        reason: Why, in words that are the same for all samples with the same fault, so that they can be counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _json_of(members: Mapping[str, bytes]) -> dict[str, Any] | None:
    data = members.get("json")
    if data is None:
        return None
    if len(data) > MAX_TEXT:
        raise BadSample("json too large")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("broken json") from error
    if not isinstance(record, dict):
        raise BadSample("json is not an object")
    return record


def _turn(record: Mapping[str, Any], pictures: int) -> Turn:
    role: Role = {"user": "user", "assistant": "assistant"}[record["role"]]  # type: ignore[assignment]
    parts: list[str | int] = []
    for part in record["content"]:
        if part["type"] == "text":
            parts.append(_text(part["text"]))
        else:
            parts.append(_index(part["image"], pictures))
    context = record.get("context")
    return Turn(
        role, tuple(parts), bool(record.get("loss", True)), None if context is None else _index(context, pictures)
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is {type(value).__name__}")
    return value


def _index(value: Any, pictures: int) -> int:
    if type(value) is not int or not 0 <= value < pictures:
        raise ValueError(f"picture {value!r} of {pictures}")
    return value


def _skeleton(record: Mapping[str, Any], key: str, source: str) -> Sample:
    """An ``m2c/1`` sample without its pictures."""
    try:
        kind: Kind = record["kind"]
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}")
        turns = tuple(_turn(turn, len(record["images"])) for turn in record["turns"])
        name = _text(record.get("source") or source)
        sample = Sample(
            _text(record.get("id") or f"{name}/{key}"), kind, name, turns, (), dict(record.get("meta") or {})
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadSample(f"json is not {SCHEMA}") from error
    if not replies_of(sample):
        raise BadSample("no reply to learn from")
    if turns[0].role != "user":
        raise BadSample("the first turn is not the user's")
    return sample


def outline(members: Mapping[str, bytes]) -> tuple[Kind, list[int]]:
    """What a sample is, without a look at its pictures.

    Args:
        members: The sample's ``json`` if it has one; further members are ignored.

    Returns:
        Its kind, and the indices of the turns that are replies to learn from.

    Raises:
        BadSample: If the JSON is broken.
    """
    record = _json_of(members)
    if record is None or record.get("schema") != SCHEMA:
        return "caption", [1]
    sample = _skeleton(record, "", "")
    return sample.kind, replies_of(sample)


def sample_of(members: Mapping[str, bytes], key: str, source: str) -> Sample:
    """Reads a sample.

    Args:
        members: Suffix (``json``, ``img0.png``, ``jpg``, ...) to the bytes of the file.
        key: Name of the sample in its shard.
        source: Name of the data set, for samples that do not say it themselves.

    Raises:
        BadSample: If it is broken or incomplete.
    """
    record = _json_of(members)
    try:
        if record is not None and record.get("schema") == SCHEMA:
            return _m2c(record, members, key, source)
        return _img2dataset(record or {}, members, key, source)
    except BadImage as error:
        raise BadSample(error.reason) from error


def _m2c(record: Mapping[str, Any], members: Mapping[str, bytes], key: str, source: str) -> Sample:
    sample = _skeleton(record, key, source)
    images = []
    for entry in record["images"]:
        try:
            member, caption = _text(entry["member"]), _text(entry.get("caption") or "")
            top, left = (int(number) for number in entry.get("crop") or (0, 0))
            size = _original_size(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadSample(f"json is not {SCHEMA}") from error
        if member not in members:
            raise BadSample("picture missing")
        pixels = load_image(members[member])
        images.append(Image(pixels, caption, size or pixels.shape[:2], (top, left)))
    return Sample(sample.id, sample.kind, sample.source, sample.turns, tuple(images), sample.meta)


def _img2dataset(record: Mapping[str, Any], members: Mapping[str, bytes], key: str, source: str) -> Sample:
    """A caption pair: its request is to draw the caption."""
    picture = next((members[suffix] for suffix in PICTURES if suffix in members), None)
    if picture is None:
        raise BadSample("no picture")
    # The text file repeats the JSON's caption; bytes that are no UTF-8 spoil a letter, not the sample.
    words = members["txt"][:MAX_TEXT].decode("utf-8", errors="replace") if "txt" in members else record.get("caption")
    caption = " ".join(words.replace("\0", " ").split()) if isinstance(words, str) else ""
    if not caption:
        raise BadSample("no caption")
    pixels = load_image(picture)
    try:
        size = _original_size(record) or pixels.shape[:2]
    except (TypeError, ValueError) as error:
        raise BadSample("original size is not a number") from error
    return caption_sample(f"{source}/{key}", source, Image(pixels, caption, size), record)


def caption_sample(name: str, source: str, image: Image, meta: Mapping[str, Any]) -> Sample:
    """The conversation of a caption pair: somebody asks for the caption, and the picture is drawn.

    Args:
        name: Id of the sample.
        source: Name of the data set.
        image: The picture with its caption.
        meta: Whatever else is known.
    """
    turns = (Turn("user", (f"Draw {image.caption}",)), Turn("assistant", (0,)))
    return Sample(name, "caption", source, turns, (image,), dict(meta))


def _original_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width before any resizing, None where nobody has noted them."""
    height, width = (int(record.get(f"original_{side}") or 0) for side in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None


def to_members(sample: Sample) -> dict[str, bytes]:
    """Files of an ``m2c/1`` sample: the inverse of `sample_of`.

    Returns:
        Suffix to bytes: ``json`` and one lossless ``img<k>.png`` a picture.
    """
    members = {f"img{index}.png": save_png(image.pixels) for index, image in enumerate(sample.images)}
    record = {
        "schema": SCHEMA,
        "kind": sample.kind,
        "id": sample.id,
        "source": sample.source,
        "images": [_image_record(index, image) for index, image in enumerate(sample.images)],
        "turns": [_turn_record(turn) for turn in sample.turns],
        "meta": dict(sample.meta),
    }
    members["json"] = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return members


def _image_record(index: int, image: Image) -> dict[str, Any]:
    height, width = image.pixels.shape[:2]
    # (0, 0) means that nobody has noted it: then it is the picture's own.
    original_height, original_width = image.original_size if all(image.original_size) else (height, width)
    return {
        "member": f"img{index}.png",
        "width": width,
        "height": height,
        "original_width": original_width,
        "original_height": original_height,
        "crop": list(image.crop),
        "caption": image.caption,
    }


def _turn_record(turn: Turn) -> dict[str, Any]:
    content: Sequence[dict[str, Any]] = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in turn.parts
    ]
    record: dict[str, Any] = {"role": turn.role, "content": content, "loss": turn.loss}
    return record if turn.context is None else {**record, "context": turn.context}
