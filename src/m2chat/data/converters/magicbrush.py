"""MagicBrush: sessions of up to three edits, each on the result of the one before or on an earlier picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2chat.data.converters.drafts import Draft, Drafts, Job, Picture, Reject, existing, inside
from m2chat.data.converters.jsonfiles import pairs
from m2chat.data.converters.lookup import Captions
from m2chat.data.converters.phrases import edited
from m2chat.data.sources import one_line
from m2chat.schema import Turn


def drafts(job: Job) -> Drafts:
    """A conversation for every session: its pictures lie in ``images/<session>/``."""
    path = existing(job.src / "edit_sessions.json", "SRC", "it is the folder with edit_sessions.json and images/")
    folder = job.images or job.src / "images"
    with Captions(job) as captions:
        for name, edits in pairs(path):
            yield _session(folder, captions, str(name), edits)


def _session(folder: Path, captions: Captions, name: str, edits: Sequence[Any]) -> Draft | Reject:
    turns: list[Turn] = []
    pictures: list[Picture] = []
    places: dict[str, int] = {}

    def place(file: str) -> int:
        if file not in places:
            places[file] = len(pictures)
            caption, by = captions.of(file)
            path = inside(folder, f"{name}/{file}")
            pictures.append(Picture(path, caption=caption, caption_by=by, media_key=file))
        return places[file]

    try:
        for edit in edits:
            change = one_line(edit["instruction"])
            if not change:
                return Reject(name, "no instruction")
            seen = edit["input"] in places
            before = place(edit["input"])
            # A picture that came up earlier is not shown again, it is referred to.
            turns.append(Turn("user", (change,) if seen else (before, change), context=before if seen else None))
            turns.append(Turn("assistant", (edited(f"{name}/{len(turns)}", change), place(edit["output"]))))
    except (KeyError, TypeError):
        return Reject(name, "edit without input, output or instruction")
    return Draft(name, "edit", tuple(turns), tuple(pictures))
