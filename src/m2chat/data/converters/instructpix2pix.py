"""InstructPix2Pix: two pictures and the instruction that leads from one to the other."""

from __future__ import annotations

import json
from typing import Any

from m2chat.data.converters.drafts import Draft, Drafts, Job, Picture, Reject, existing, inside
from m2chat.data.converters.jsonfiles import items
from m2chat.data.converters.phrases import edited
from m2chat.data.sources import one_line
from m2chat.schema import Turn


def drafts(job: Job) -> Drafts:
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


def _edit(job: Job, name: str, seed: str, prompt: dict[str, Any] | None) -> Draft | Reject:
    where = f"{name}/{seed}"
    if prompt is None:
        return Reject(where, "prompt.json missing or broken")
    before, change, after = (one_line(prompt.get(key)) for key in ("input", "edit", "output"))
    if not change or not after:
        return Reject(where, "no instruction" if not change else "no caption")
    pictures = tuple(
        Picture(inside(job.src, f"{where}_{side}.jpg"), caption=caption, caption_by="file", media_key=f"{where}_{side}")
        for side, caption in ((0, before), (1, after))
    )
    turns = (Turn("user", (0, change)), Turn("assistant", (edited(where, change), 1)))
    return Draft(where, "edit", turns, pictures)
