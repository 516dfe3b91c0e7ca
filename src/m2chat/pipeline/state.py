"""The state of a session, in memory and on disk: a folder with ``session.json`` and one PNG per picture."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from m2chat.data.images import BadImage, load_image, save_png
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.replier import ImageMode
from m2chat.schema import Conversation, Image, Turn

if TYPE_CHECKING:
    from m2chat.pipeline.base import PipelineBase

FILE = "session.json"
_NAME = re.compile(r"picture-\d{4,}\.png")


@dataclass(frozen=True)
class SessionSettings:
    """Settings of all replies of a session.

    Args:
        image: Whether replies have pictures: ``auto``, ``force``, ``never``.
        max_images: Maximum number of pictures in a reply.
        seed: Seed of every reply; None draws another one for each.
        steps: Denoising steps; None for the image decoder's, 25 unless a preset has others.
        guidance: Scale of classifier-free guidance; None as for `steps`, 5.
        size: Side of the pictures in pixels; None for the model's.
        preview_every: Denoising steps between two previews of a picture; 0 for none.
        max_new_tokens: Maximum length of an answer, in tokens.
        max_caption_tokens: Maximum length of a caption, in tokens; a caption that is cut there is not drawn.
        temperature: Temperature of text sampling; 0 decodes greedily.
        top_p: Cumulative probability of nucleus sampling, 0-1.
        height: Height of the pictures in pixels, in place of `size`.
        width: Width of the pictures in pixels, in place of `size`.
    """

    image: ImageMode = "auto"
    max_images: int = 4
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    preview_every: int = 5
    max_new_tokens: int = 64
    max_caption_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 0.75
    height: int | None = None
    width: int | None = None

    def drawing(self, pipe: PipelineBase, seed: int) -> DrawSettings:
        """Settings of the drawing of a reply.

        Raises:
            UserError: If the pipeline cannot draw so.
        """
        return pipe.draw_settings(
            self.steps, self.guidance, seed, self.size, self.preview_every, self.height, self.width
        )


@dataclass(frozen=True)
class SessionState:
    """A conversation with the notes of its replies.

    Args:
        conversation: Turns and pictures, numbered in the order of the turns.
        notes: One per turn: ``seed``, ``image``, ``max_images``, ``gate``, ``cosine``, ``cut_tokens``, ``stopped`` of a
            reply, and ``finish_reason`` of one that a limit has cut; empty for a turn of the user.
    """

    # The name decides the noise of pictures: it is the same in all sessions, so that a seed gives the same picture.
    conversation: Conversation = field(default_factory=lambda: Conversation("session", ()))
    notes: tuple[dict[str, Any], ...] = ()

    def until(self, turn: int) -> SessionState:
        """The state before a turn."""
        return SessionState(self.conversation.until(turn), self.notes[:turn])


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


class _PictureEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    file: str
    caption: str = ""
    caption_by: str = ""


class _Note(BaseModel):
    """Note of a reply; regenerating reads these three entries."""

    model_config = ConfigDict(extra="allow", strict=True)
    seed: int = 0
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
    weights: dict[str, str]
    settings: dict[str, Any]
    pictures: list[_PictureEntry]
    turns: list[_TurnEntry]


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
            (folder / entry.file).write_bytes(save_png(image.pixels))
        with whole_file(folder / FILE) as part:
            part.write_text(record.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"the session cannot be written to {folder}: {error.strerror or error}") from error


def read_session(folder: Path) -> SavedSession:
    """Reads a session.

    Args:
        folder: Folder that `write_session` wrote.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"there is no session in {folder}: it needs a {FILE}, as `save` writes it")
    try:
        record = _SessionFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
        settings = TypeAdapter(SessionSettings).validate_python(record.settings)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is no session of this version: {str(error).splitlines()[0]}") from error
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


def _read_picture(folder: Path, entry: _PictureEntry) -> Image:
    """A picture of a session; only a plain file name within the folder is opened."""
    path = folder / entry.file
    if not _NAME.fullmatch(entry.file) or path.is_symlink():
        raise UserError(f"{folder / FILE} names a picture {entry.file!r}: only files like picture-0001.png are read")
    try:
        pixels = load_image(path.read_bytes())
    except (OSError, BadImage) as error:
        raise UserError(f"{path}: the session's picture is missing or damaged ({error})") from error
    return Image(pixels, entry.caption, (pixels.shape[0], pixels.shape[1]), caption_by=entry.caption_by)
