"""LLaVA's visual instructions: questions about a picture and their answers, some about none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.data.converters.drafts import Draft, Drafts, Job, Picture, Reject, existing, inside
from m2chat.data.converters.jsonfiles import records
from m2chat.data.converters.lookup import Captions
from m2chat.data.sources import printable
from m2chat.schema import Role, Turn

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_PLACE = "<image>"


def drafts(job: Job) -> Drafts:
    """A dialogue for every item."""
    path = existing(job.src, "SRC", "it is the JSON list of conversations")
    folder = job.images or path.parent
    with Captions(job) as captions:
        for number, item in enumerate(records(path)):
            try:
                yield _dialogue(folder, captions, item, str(item.get("id", number)))
            except (KeyError, TypeError, AttributeError):
                yield Reject(str(number), "item is not LLaVA's")


def _dialogue(folder: Path, captions: Captions, item: dict[str, Any], name: str) -> Draft | Reject:
    files = item.get("image") or []
    files = [files] if isinstance(files, str) else list(files)
    pictures = []
    for file in files:
        caption, by = captions.of(file)
        pictures.append(Picture(inside(folder, file), caption=caption, caption_by=by, media_key=file))
    turns = []
    waiting = list(range(len(files)))
    for spoken in item["conversations"]:
        role = _ROLES.get(spoken["from"])
        if role is None:
            return Reject(name, "speaker is neither human nor gpt")
        parts: list[str | int] = []
        # Placeholders stand before or after the question; an answer's are only words.
        pieces = spoken["value"].split(_PLACE) if role == "user" else [spoken["value"]]
        for index, piece in enumerate(pieces):
            if index and waiting:
                parts.append(waiting.pop(0))
            if text := printable(piece):
                parts.append(text)
        if not parts:
            return Reject(name, "empty turn")
        turns.append(Turn(role, tuple(parts)))
    if waiting and turns:  # Without placeholders the pictures come first.
        turns[0] = Turn(turns[0].role, (*waiting, *turns[0].parts))
    return Draft(name, "dialogue", tuple(turns), tuple(pictures))
