"""What a converter says of a raw record: a conversation whose pictures are still files somewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from m2chat.data.images import BadImage
from m2chat.errors import UserError
from m2chat.schema import Kind, Turn

Form = Literal["caption", "instruct"]
MAX_FILE = 64 * 2**20
"""Longest picture file that is read, in bytes; a shard may not hold longer ones."""


@dataclass(frozen=True)
class Picture:
    """A picture and where it lies.

    Args:
        path: The file; empty if there is none.
        offset: Where it starts, if it lies in a tar.
        length: Its bytes, if it lies in a tar.
        caption: What it shows; empty if nobody has said.
        caption_by: Who said so: ``alt-text``, ``human``, ``file``, ``turn``, ``model:<name>``.
        media_key: Its name in the raw data.
        original_size: Height and width before any resizing; None if this is the original.
    """

    path: str
    offset: int = 0
    length: int | None = None
    caption: str = ""
    caption_by: str = ""
    media_key: str = ""
    original_size: tuple[int, int] | None = None

    def read(self) -> bytes:
        """The file.

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
class Draft:
    """A sample to be.

    Args:
        id: Unique in the data set.
        kind: What it teaches.
        turns: In the order in which they were said.
        pictures: What the turns point to.
        meta: Whatever else is known.
        license: Its own terms, where they differ within the data set.
    """

    id: str
    kind: Kind
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""


@dataclass(frozen=True)
class Reject:
    """A record that cannot become a sample.

    Args:
        id: What it would have been called.
        reason: Why, in words that are the same for all records with the same fault.
    """

    id: str
    reason: str


Drafts = Iterator[Draft | Reject]


@dataclass(frozen=True)
class Job:
    """A conversion.

    Args:
        format: Name of the raw format.
        src: The raw data.
        dst: Folder for the shards.
        name: Name of the data set; the shards are called after it.
        license: Terms of the samples that do not say their own.
        images: Folder of the pictures; None means where the format has them.
        captions: Side file of captions: JSON lines with ``media_key`` and ``caption``.
        split: Part of the data set, for the formats that keep several in one folder.
        form: What caption pairs become: ``caption``, or ``instruct`` with requests in many words.
        min_aesthetic: Least aesthetic score; None takes all.
        sample: Number of pictures to choose; 0 takes all.
        seed: Of that choice.
        text_as_caption: Whether a picture without a caption gets the words of its turn.
        limit: Number of records after which to stop; 0 means none.
        per_shard: Samples of a shard.
        min_side: Least side of a picture in pixels, before any resizing if that is known.
        workers: Processes that read and check pictures; 1 does it in this one.
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
