"""A session on disk: a folder with ``session.json`` and one PNG per picture, which may come from anyone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from m2chat.data.images import BadImage, load_image, opened, save_png
from m2chat.errors import UserError
from m2chat.files import write_whole
from m2chat.pipeline.replier import ImageMode
from m2chat.pipeline.state import SessionSettings, SessionState
from m2chat.ranges import check_ranges
from m2chat.schema import Conversation, Image, Turn

FILE = "session.json"
MAX_PIXELS = 400_000_000
"""Default maximum number of pixels of a session's pictures together, of which each takes three bytes of memory."""
MAX_TURNS = 10_000
MAX_PICTURES = 2_000
_MAX_PICTURE = 32_000_000  # pixels
_MAX_BYTES = 16 * 2**20  # of the JSON
_MAX_DEPTH = 16  # of the JSON
_MAX_SIDE = 8192  # of the pictures that a session asks for
_MAX_NAME = 200  # letters of a name in `weights`, which goes into the log
_NAME = re.compile(r"picture-\d{4,}\.png")


@dataclass(frozen=True)
class SavedSession:
    """Contents of a session's folder.

    Args:
        state: Conversation and notes.
        settings: Settings of the session.
        weights: ``stage`` and ``fingerprint`` of the weights that replied, and ``decoder``, a name of what drew.
    """

    state: SessionState
    settings: SessionSettings
    weights: dict[str, str]


_ShortText = Annotated[str, Field(max_length=_MAX_NAME)]


class _PictureEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    caption: str = ""
    caption_by: str = ""


class _Note(BaseModel):
    """Note of a reply; regenerating reads these three entries."""

    model_config = ConfigDict(extra="allow", strict=True)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    image: ImageMode = "auto"
    max_images: int = Field(default=4, ge=1, le=16)


class _TurnEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user", "assistant"]
    parts: list[str | int]
    context: int | None = None
    note: _Note | None = None


class _SessionFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["m2chat-session/1"]
    weights: dict[_ShortText, _ShortText] = Field(max_length=16)
    settings: dict[str, Any]
    pictures: list[_PictureEntry] = Field(max_length=MAX_PICTURES)
    turns: list[_TurnEntry] = Field(max_length=MAX_TURNS)


def write_session(saved: SavedSession, folder: Path) -> None:
    """Writes a session. ``session.json`` comes last, so that an older one stays whole until then.

    Args:
        saved: Contents.
        folder: Folder; made if it does not exist.

    Raises:
        UserError: If it cannot be written.
    """
    images, turns = saved.state.conversation.images, saved.state.conversation.turns
    pictures = [
        _PictureEntry(file=f"picture-{k:04d}.png", caption=image.caption, caption_by=image.caption_by)
        for k, image in enumerate(images, 1)
    ]
    record = _SessionFile(
        format="m2chat-session/1",
        weights=saved.weights,
        settings=asdict(saved.settings),
        pictures=pictures,
        turns=[
            _TurnEntry(
                role=turn.role, parts=list(turn.parts), context=turn.context, note=_Note(**note) if note else None
            )
            for turn, note in zip(turns, saved.state.notes, strict=True)
        ],
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry, image in zip(pictures, images, strict=True):
            write_whole(folder / entry.file, save_png(image.pixels))
        write_whole(folder / FILE, [record.model_dump_json(indent=1, exclude_none=True), "\n"])
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the session cannot be written to {folder}: {error.strerror or error}") from error


def read_session(folder: Path, max_pixels: int = MAX_PIXELS) -> SavedSession:
    """Reads a session. What it holds is checked before it is made use of: the files may come from anyone.

    Args:
        folder: Folder that `write_session` wrote.
        max_pixels: Maximum number of pixels of all pictures together.

    Raises:
        UserError: If there is none, it is damaged, or it is too large.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"there is no session in {folder}: it needs a {FILE}, as `save` writes it")
    try:
        record = _SessionFile.model_validate(_json_of(path))
        settings = TypeAdapter(SessionSettings).validate_python(record.settings)
        _check_settings(settings)
    except UserError as error:
        raise UserError(f"{path}: settings: {error}") from error
    except (ValidationError, ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"{path} is no session of this version: {str(error).splitlines()[0][:300]}") from error
    _check_pixels(folder, record.pictures, max_pixels)
    images = tuple(_read_picture(folder, entry) for entry in record.pictures)
    turns = tuple(Turn(turn.role, tuple(turn.parts), context=turn.context) for turn in record.turns)
    # Each picture belongs to one turn, in order; a context names one of them.
    numbers = [number for turn in turns for number in turn.pictures]
    contexts = {turn.context for turn in turns} - {None}
    is_broken = numbers != list(range(len(images))) or not contexts <= set(numbers)
    if is_broken or (turns and turns[0].role != "user"):
        raise UserError(f"{path} is damaged: its turns and its {len(images)} pictures do not fit together")
    notes = tuple(turn.note.model_dump() if turn.note else {} for turn in record.turns)
    return SavedSession(SessionState(Conversation("session", turns, images), notes), settings, record.weights)


def _json_of(path: Path) -> Any:
    """The content of a JSON file of a stranger.

    Raises:
        ValueError: If it is too large, nested too deeply, not JSON in UTF-8, or holds NaN or half of a character.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number of JSON")

    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES // 2**20} MiB")
    text = path.read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    level: list[Any] = [content]
    for _ in range(_MAX_DEPTH):
        level = [item for value in level if isinstance(value, dict | list)
                 for item in (value.values() if isinstance(value, dict) else value)]  # fmt: skip
        if not level:
            break
    else:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if "\\ud" in text.lower():  # only an escape can spell half of a character
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def _check_settings(settings: SessionSettings) -> None:
    """Refuses settings out of their ranges.

    Raises:
        UserError: That names the setting.
    """
    names = ("max_images", "seed", "steps", "guidance", "preview_every", "max_new_tokens", "max_caption_tokens",
             "temperature", "top_p")  # fmt: skip
    given = {name: getattr(settings, name) for name in names}
    check_ranges(**{name: value for name, value in given.items() if value is not None})
    for name in ("size", "height", "width"):
        side = getattr(settings, name)
        if side is not None and not 1 <= side <= _MAX_SIDE:
            raise UserError(f"{name}={side!r}: choose a whole number from 1 to {_MAX_SIDE}")


def _check_pixels(folder: Path, entries: Sequence[_PictureEntry], most: int) -> None:
    """Adds up the pixels that the pictures declare, before any is decoded: 64 million fit into a file of some kB.

    Raises:
        UserError: If there are too many.
    """
    total = 0
    for entry in entries:
        try:
            with opened(_picture_bytes(folder, entry)) as image:
                if image.format != "PNG":  # some others take four times the memory
                    raise UserError(f"{folder / entry.file}: the session's picture is no PNG, but {image.format}")
                pixels = image.size[0] * image.size[1]
        except BadImage as error:
            raise UserError(f"{folder / entry.file}: the session's picture is damaged ({error})") from error
        total += pixels
        if pixels > _MAX_PICTURE or total > most:
            raise UserError(
                f"{folder / FILE}: the session is too large: a picture may have {_MAX_PICTURE // 10**6} million "
                f"pixels, and all together {most // 10**6} million"
            )


def _picture_bytes(folder: Path, entry: _PictureEntry) -> bytes:
    """The file of a picture; only a plain file name within the folder is opened.

    Raises:
        UserError: If it has another name, or cannot be read.
    """
    path = folder / entry.file
    if not _NAME.fullmatch(entry.file) or path.is_symlink():
        shown = entry.file[:_MAX_NAME]
        raise UserError(f"{folder / FILE} names a picture {shown!r}: only files like picture-0001.png are read")
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the session's picture is missing or damaged ({error})") from error


def _read_picture(folder: Path, entry: _PictureEntry) -> Image:
    """A picture of a session."""
    try:
        pixels = load_image(_picture_bytes(folder, entry))
    except BadImage as error:
        raise UserError(f"{folder / entry.file}: the session's picture is missing or damaged ({error})") from error
    return Image(pixels, entry.caption, (pixels.shape[0], pixels.shape[1]), caption_by=entry.caption_by)
