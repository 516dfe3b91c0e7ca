"""What converters yield: samples whose pictures are still files somewhere, and the settings of a conversion.

Converters add words around raw data where it has none (requests, story openers, short replies); which of them a sample
gets is a function of its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from m2chat.data.images import BadImage
from m2chat.data.sources import caption_turns
from m2chat.errors import UserError
from m2chat.schema import Kind, Turn

Form = Literal["caption", "instruct"]
MISSING = "picture missing"
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
        fault: Reason why there is no file to read; empty if there is one.
    """

    path: str
    offset: int = 0
    length: int | None = None
    caption: str = ""
    caption_by: str = ""
    media_key: str = ""
    original_size: tuple[int, int] | None = None
    fault: str = ""

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            BadImage: If it is missing, unreadable or too large.
        """
        if self.fault:
            raise BadImage(self.fault)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(MAX_FILE + 1 if self.length is None else min(self.length, MAX_FILE + 1))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadImage("picture missing: its path has \\ for /" if "\\" in self.path else MISSING) from error
        except IsADirectoryError as error:
            raise BadImage("picture path is a folder") from error
        except OSError as error:
            raise BadImage(f"picture unreadable ({error.strerror})") from error
        except ValueError as error:  # half of a surrogate pair
            raise BadImage("picture path is no name of a file") from error
        return limited(data)


def limited(data: bytes) -> bytes:
    """The content of a picture file.

    Raises:
        BadImage: If it is longer than `MAX_FILE`.
    """
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
        encoding: Encoding of text files without a byte order mark; empty for UTF-8.
        columns: Column of each role that is not found by itself, as ``role=column,...``.
        rows_from: Number of the first row, where pictures are named by rows; None if their numbers show it.
        max_rejects: Largest share of records that may be rejected.
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
    encoding: str = ""
    columns: str = ""
    rows_from: int | None = None
    max_rejects: float = 0.5

    @property
    def work(self) -> Path:
        """Folder of what is only needed until the conversion is complete."""
        return self.dst / ".progress"


def file_in(folder: Path, name: object, **facts: Any) -> PictureFile:
    """The picture that raw data name, which may only lie inside a folder.

    Args:
        folder: Folder of the pictures.
        name: Path that the data state.
        **facts: Further arguments of `PictureFile`.
    """
    fault = path_fault(name)
    return PictureFile("" if fault else str(folder / PurePosixPath(str(name))), fault=fault, **facts)


def path_fault(name: object) -> str:
    """Reason why a path of the data is not read; empty if there is none."""
    if name is None or name == "":
        return "no picture named"
    if not isinstance(name, str):
        return "picture path is no text"
    if "://" in name:
        return "picture is a URL: download it first, and name the folder by --images"
    if name.startswith("/") or PureWindowsPath(name).anchor:
        return "picture path is absolute: make it relative to the folder of --images"
    if ".." in name.replace("\\", "/").split("/"):
        return "picture path leaves the folder (..): make it relative to the folder of --images"
    return "picture path is no name of a file" if "\0" in name else ""


def by_choice(reason: str) -> bool:
    """Whether a reject is none of the data's faults: an option left it out, or img2dataset could not download it."""
    return reason.startswith(("picture of less than ", "aesthetic score below ", "failed to "))


def no_caption(value: object) -> str:
    """Why a value is no caption: there is none, or it is a number, as in a column of another meaning."""
    return "caption is a number, no text" if isinstance(value, int | float) and value == value else "no caption"


def id_of(value: object, number: int | str) -> str:
    """The id that a record states; else its number in the data, if it states none (missing, null or empty).

    Ids need not be unique: `engine.convert` tells repeated ones apart.
    """
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text.strip() or str(number)


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
