"""Sessions on disk: a folder with ``session.json`` and one PNG a picture."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from m2chat.data.images import BadImage, load_image, save_png
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.pipeline.pipeline import M2ChatPipeline
from m2chat.pipeline.plan import SessionSettings
from m2chat.pipeline.session import Session
from m2chat.schema import Image, Turn

_LOG = logging.getLogger(__name__)
FILE = "session.json"
_NAME = re.compile(r"picture-\d{4,}\.png")


class _Picture(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    caption: str = ""
    caption_by: str = ""


class _Note(BaseModel):
    """What is known of a reply; regenerating reads the first three."""

    model_config = ConfigDict(extra="allow", strict=True)
    seed: int = 0
    image: Literal["auto", "force", "never"] = "auto"
    max_images: int = Field(default=4, ge=1, le=16)


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["user", "assistant"]
    parts: list[str | int]
    context: int | None = None
    note: _Note | None = None


class _Session(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["m2chat-session/1"]
    weights: dict[str, str]
    settings: dict[str, Any]
    pictures: list[_Picture]
    turns: list[_Turn]


def save_session(session: Session, folder: Path) -> None:
    """Writes a session; ``session.json`` comes last, so that an older one stays whole until the new one is.

    Args:
        session: What to write.
        folder: Made if it does not exist.

    Raises:
        UserError: If it cannot be written.
    """
    pictures = [
        _Picture(file=f"picture-{k:04d}.png", caption=image.caption, caption_by=image.caption_by)
        for k, image in enumerate(session.images, 1)
    ]
    turns = [
        _Turn(role=turn.role, parts=list(turn.parts), context=turn.context, note=_Note(**note) if note else None)
        for turn, note in zip(session.turns, session.notes, strict=True)
    ]
    origin = session.pipe.origin
    whole = _Session(
        format="m2chat-session/1",
        weights={"stage": origin.stage, "fingerprint": origin.fingerprint},
        settings=asdict(session.settings),
        pictures=pictures,
        turns=turns,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry, image in zip(pictures, session.images, strict=True):
            (folder / entry.file).write_bytes(save_png(image.pixels))
        with whole_file(folder / FILE) as part:
            part.write_text(whole.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the session cannot be written to {folder}: {error.strerror or error}") from error


def load_session(pipe: M2ChatPipeline, folder: Path) -> Session:
    """Reads a session back.

    Args:
        pipe: Will reply.
        folder: Where it was written.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"there is no session in {folder}: it needs a {FILE}, as `save` writes it")
    try:
        found = _Session.model_validate(json.loads(path.read_text(encoding="utf-8")))
        settings = TypeAdapter(SessionSettings).validate_python(found.settings)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is no session of this version: {str(error).splitlines()[0]}") from error
    session = Session(pipe)
    session.settings = settings
    session.images = tuple(_picture(folder, entry) for entry in found.pictures)
    session.turns = tuple(Turn(turn.role, tuple(turn.parts), context=turn.context) for turn in found.turns)
    session.notes = tuple(turn.note.model_dump() if turn.note else {} for turn in found.turns)
    shown = [number for turn in session.turns for number in turn.pictures]
    contexts = {turn.context for turn in session.turns} - {None}
    is_broken = shown != list(range(len(session.images))) or not contexts <= set(shown)
    if is_broken or (session.turns and session.turns[0].role != "user"):
        raise UserError(f"{path} is damaged: its turns and its {len(session.images)} pictures do not fit together")
    own = {"stage": pipe.origin.stage, "fingerprint": pipe.origin.fingerprint}
    if found.weights != own:
        _LOG.warning("%s was held with other weights (%s): replies will differ", folder, found.weights)
    return session


def _picture(folder: Path, entry: _Picture) -> Image:
    """A picture of a session; only a plain name within the folder is opened."""
    path = folder / entry.file
    if not _NAME.fullmatch(entry.file) or path.is_symlink():
        raise UserError(f"{folder / FILE} names a picture {entry.file!r}: only files like picture-0001.png are read")
    try:
        pixels = load_image(path.read_bytes())
    except (OSError, BadImage) as error:
        raise UserError(f"{path}: the session's picture is missing or damaged ({error})") from error
    return Image(pixels, entry.caption, (pixels.shape[0], pixels.shape[1]), caption_by=entry.caption_by)
