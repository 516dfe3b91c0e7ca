"""Instruction data sets: Alpaca (text alone) and LLaVA (questions about a picture)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Broken, Captions, records
from m2chat.data.converters.raw import Job, RawSample, RawSamples, Reject, existing, file_in, id_of
from m2chat.data.sources import clean_text
from m2chat.schema import Role, Turn

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_PLACEHOLDER = "<image>"


def alpaca(job: Job) -> RawSamples:
    """A dialogue of two turns for every item."""
    path = existing(job.src, "SRC", "it is the JSON list of instructions")
    for number, item in enumerate(records(path, job.encoding)):
        if not isinstance(item, dict):
            yield Reject(str(number), item.reason if isinstance(item, Broken) else "item is not Alpaca's")
            continue
        if not item.keys() & {"instruction", "output"}:
            yield Reject(str(number), "item is not Alpaca's")
            continue
        request, extra, answer = (clean_text(item.get(key)) for key in ("instruction", "input", "output"))
        if not request or not answer:
            yield Reject(str(number), "no instruction" if not request else "no answer")
        else:
            whole = f"{request}\n{extra}" if extra else request
            yield RawSample(str(number), "dialogue", (Turn("user", (whole,)), Turn("assistant", (answer,))))


def llava(job: Job) -> RawSamples:
    """A dialogue for every item; its pictures stand where the placeholders are."""
    path = existing(job.src, "SRC", "it is the JSON list of conversations")
    folder = job.images or path.parent
    with Captions(job) as captions:
        for number, item in enumerate(records(path, job.encoding)):
            if isinstance(item, Broken):
                yield Reject(str(number), item.reason)
                continue
            try:
                yield _dialogue(folder, captions, item, id_of(item.get("id"), number))
            except (KeyError, TypeError, AttributeError):
                yield Reject(str(number), "item is not LLaVA's")


def _dialogue(folder: Path, captions: Captions, item: dict[str, Any], name: str) -> RawSample | Reject:
    files = item.get("image") or []
    files = [files] if isinstance(files, str) else list(files)
    if not all(isinstance(file, str) for file in files):
        return Reject(name, "image is neither a path nor a list of them")
    marks = sum(message["value"].count(_PLACEHOLDER) for message in item["conversations"])
    # Without marks the pictures come first. With some, which picture is which is known only if each has its own.
    if marks and marks != len(files):
        return Reject(name, f"{marks} {_PLACEHOLDER} marks, {len(files)} pictures")
    pictures = []
    for file in files:
        caption, by = captions.of(file)
        pictures.append(file_in(folder, file, caption=caption, caption_by=by, media_key=file))
    turns = []
    waiting = list(range(len(files)))
    for message in item["conversations"]:
        role = _ROLES.get(message["from"])
        if role is None:
            return Reject(name, "speaker is neither human nor gpt")
        parts: list[str | int] = []
        for index, piece in enumerate(message["value"].split(_PLACEHOLDER)):
            if index:
                parts.append(waiting.pop(0))
            if text := clean_text(piece):
                parts.append(text)
        if not parts:
            return Reject(name, "empty turn")
        turns.append(Turn(role, tuple(parts)))
    if waiting and turns:
        turns[0] = Turn(turns[0].role, (*waiting, *turns[0].parts))
    return RawSample(name, "dialogue", tuple(turns), tuple(pictures))
