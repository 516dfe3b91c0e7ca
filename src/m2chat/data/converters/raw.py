"""What converters yield: samples whose pictures are still files somewhere, and the settings of a conversion.

Converters add words around raw data where it has none (requests, story openers, short replies); which of them a sample
gets is a function of its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from m2chat.data.images import BadImage
from m2chat.data.sources import caption_turns
from m2chat.errors import UserError
from m2chat.schema import Kind, Turn

Form = Literal["caption", "instruct"]
MAX_FILE = 64 * 2**20
"""Longest picture file that is read, in bytes; a shard may not hold longer ones."""

REQUESTS = (
    "Please draw {}",
    "Show me {}",
    "Could you make a picture of {} ?",
    "I would love to see {}",
    "Paint this for me : {}",
    "What might it look like : {} ?",
    "Give me an image that shows {}",
    "Imagine {} , and let me see it",
)
OPENERS = (
    "Tell me a story in pictures",
    "Let us look through some photos , what happened ?",
    "Make up a story and show every part of it",
    "What did the day bring ? Show me as you tell",
)
EDITED = ("Here it is : {}", "Done : {}", "As you asked : {}", "Changed : {}")


@dataclass(frozen=True)
class PictureFile:
    """A picture of the raw data and where it lies.

    Args:
        path: Path of the file; empty if there is none.
        offset: First byte, if it lies in a tar.
        length: Number of bytes, if it lies in a tar.
        caption: Caption; empty if unknown.
        caption_by: Origin of the caption: ``alt-text``, ``human``, ``file``, ``turn``, ``model:<name>``.
        media_key: Name in the raw data.
        original_size: Height and width before any resizing, in pixels; None if this is the original.
    """

    path: str
    offset: int = 0
    length: int | None = None
    caption: str = ""
    caption_by: str = ""
    media_key: str = ""
    original_size: tuple[int, int] | None = None

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            BadImage: If it is missing or too large.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(MAX_FILE + 1 if self.length is None else min(self.length, MAX_FILE + 1))
        except OSError as error:
            raise BadImage("picture missing") from error
        if len(data) > MAX_FILE:
            raise BadImage(f"picture file of more than {MAX_FILE // 2**20} MiB")
        return data


@dataclass(frozen=True)
class RawSample:
    """A sample before its pictures are checked.

    Args:
        id: Id, unique in the data set.
        kind: Kind of conversation.
        turns: Turns in their order.
        pictures: Pictures that the turns refer to by index.
        meta: Further facts.
        license: Terms of this sample, where they differ within the data set.
    """

    id: str
    kind: Kind
    turns: tuple[Turn, ...]
    pictures: tuple[PictureFile, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""


@dataclass(frozen=True)
class Reject:
    """A record that cannot become a sample.

    Args:
        id: Id that the sample would have had.
        reason: Reason, in words that are the same for all records with the same fault.
    """

    id: str
    reason: str


RawSamples = Iterator[RawSample | Reject]


@dataclass(frozen=True)
class Job:
    """A conversion.

    Args:
        format: Name of the raw format.
        src: Raw data.
        dst: Folder for the shards.
        name: Name of the data set; the shards are called after it.
        license: Terms of the samples that do not state any.
        images: Folder of the pictures; None for the format's usual place.
        captions: Side file of captions: JSON lines with ``media_key`` and ``caption``.
        split: Part of the data set, for the formats that keep several in one folder.
        form: Kind that caption pairs become: ``caption``, or ``instruct`` with requests in many words.
        min_aesthetic: Least aesthetic score; None takes all.
        sample: Number of pictures to choose; 0 takes all.
        seed: Seed of that choice.
        text_as_caption: Whether a picture without a caption gets the text of its turn.
        limit: Number of records after which to stop; 0 means none.
        per_shard: Samples per shard.
        min_side: Least side of a picture in pixels, before any resizing if that is known.
        workers: Processes that read and check pictures; 1 works in the calling process.
    """

    format: str
    src: Path
    dst: Path
    name: str
    license: str = ""
    images: Path | None = None
    captions: Path | None = None
    split: str = ""
    form: Form = "caption"
    min_aesthetic: float | None = None
    sample: int = 0
    seed: int = 0
    text_as_caption: bool = False
    limit: int = 0
    per_shard: int = 1000
    min_side: int = 32
    workers: int = 1

    @property
    def work(self) -> Path:
        """Folder of what is only needed until the conversion is complete."""
        return self.dst / ".progress"


def inside(folder: Path, name: str) -> str:
    """The path of a file that raw data name, which may only lie inside a folder; empty if it would not."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
        return ""
    return str(folder / parts)


def existing(path: Path, setting: str, remedy: str) -> Path:
    """A path that must exist.

    Raises:
        UserError: If it does not.
    """
    if not path.exists():
        raise UserError(f"{setting}: there is no {path}: {remedy}")
    return path


def pick(choices: Sequence[str], key: str) -> str:
    """One of some texts, always the same for a key."""
    return choices[rank(key) % len(choices)]


def rank(key: str) -> int:
    """A pseudo-random number below 2**64 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def caption_pair(
    name: str, picture: PictureFile, form: Form, meta: Mapping[str, Any] | None = None, license: str = ""
) -> RawSample:
    """A caption pair: the user requests what the caption describes, and the picture is the reply.

    Args:
        name: Id of the sample.
        picture: Picture with its caption.
        form: Kind of the sample: ``caption`` has one request, ``instruct`` one of `REQUESTS`.
        meta: Further facts.
        license: Terms of this sample.
    """
    request = pick(REQUESTS, name) if form == "instruct" else "Draw {}"
    # Not str.format: a caption may hold braces.
    return RawSample(name, form, caption_turns(request.replace("{}", picture.caption)), (picture,), meta or {}, license)


def edited(key: str, change: str) -> str:
    """A short reply that names the change."""
    return pick(EDITED, key).replace("{}", change)
