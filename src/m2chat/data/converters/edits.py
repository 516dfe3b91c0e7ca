"""Editing data sets: InstructPix2Pix (one edit of one picture) and MagicBrush (sessions of up to three edits)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Captions, items, pairs
from m2chat.data.converters.raw import Job, PictureFile, RawSample, RawSamples, Reject, edited, existing, inside
from m2chat.data.sources import one_line
from m2chat.schema import Turn


def instructpix2pix(job: Job) -> RawSamples:
    """An edit for every seed of every prompt."""
    path = existing(job.src / "seeds.json", "SRC", "it is the folder with seeds.json and a folder for each prompt")
    for item in items(path):
        try:
            name, seeds = str(item[0]), [str(seed) for seed in item[1]]
        except (KeyError, TypeError, IndexError):
            yield Reject(str(item)[:80], "entry of seeds.json is not a prompt with its seeds")
            continue
        prompt = _prompt(inside(job.src, f"{name}/prompt.json"))
        for seed in seeds:
            yield _edit(job, name, seed, prompt)


def _prompt(path: str) -> dict[str, Any] | None:
    """The instruction, and the captions before and after; None if they cannot be read."""
    try:
        with open(path, "rb") as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _edit(job: Job, name: str, seed: str, prompt: dict[str, Any] | None) -> RawSample | Reject:
    where = f"{name}/{seed}"
    if prompt is None:
        return Reject(where, "prompt.json missing or broken")
    before, change, after = (one_line(prompt.get(key)) for key in ("input", "edit", "output"))
    if not change or not after:
        return Reject(where, "no instruction" if not change else "no caption")
    pictures = tuple(
        PictureFile(inside(job.src, f"{key}.jpg"), caption=caption, caption_by="file", media_key=key)
        for key, caption in ((f"{where}_0", before), (f"{where}_1", after))
    )
    turns = (Turn("user", (0, change)), Turn("assistant", (edited(where, change), 1)))
    return RawSample(where, "edit", turns, pictures)


def magicbrush(job: Job) -> RawSamples:
    """A conversation for every session: its pictures lie in ``images/<session>/``."""
    path = existing(job.src / "edit_sessions.json", "SRC", "it is the folder with edit_sessions.json and images/")
    folder = job.images or job.src / "images"
    with Captions(job) as captions:
        for name, edits in pairs(path):
            yield _session(folder, captions, str(name), edits)


def _session(folder: Path, captions: Captions, name: str, edits: Sequence[Any]) -> RawSample | Reject:
    turns: list[Turn] = []
    pictures: list[PictureFile] = []
    places: dict[str, int] = {}

    def place(file: str) -> int:
        if file not in places:
            places[file] = len(pictures)
            caption, by = captions.of(file)
            path = inside(folder, f"{name}/{file}")
            pictures.append(PictureFile(path, caption=caption, caption_by=by, media_key=file))
        return places[file]

    try:
        for edit in edits:
            change = one_line(edit["instruction"])
            if not change:
                return Reject(name, "no instruction")
            repeated = edit["input"] in places
            before = place(edit["input"])
            # A picture of an earlier turn is not sent again: the turn refers to it as its context.
            parts = (change,) if repeated else (before, change)
            turns.append(Turn("user", parts, context=before if repeated else None))
            turns.append(Turn("assistant", (edited(f"{name}/{len(turns)}", change), place(edit["output"]))))
    except (KeyError, TypeError):
        return Reject(name, "edit without input, output or instruction")
    return RawSample(name, "edit", tuple(turns), tuple(pictures))
