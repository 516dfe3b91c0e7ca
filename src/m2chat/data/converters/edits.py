"""Editing data sets: InstructPix2Pix (one edit of one picture) and MagicBrush (sessions of up to three edits)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Broken, Captions, items, pairs, records
from m2chat.data.converters.raw import (
    Job,
    PictureFile,
    RawSample,
    RawSamples,
    Reject,
    edited,
    existing,
    file_in,
    path_fault,
)
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.schema import Turn


def instructpix2pix(job: Job) -> RawSamples:
    """An edit for every seed of every prompt."""
    path = _list_of(job, "seeds.json", "it is the folder with seeds.json and a folder for each prompt")
    for item in items(path, "", job.encoding):
        match item:
            case [str() | int() as name, [*seeds]] if all(isinstance(seed, str | int) for seed in seeds):
                prompt = _prompt(job, f"{name}/prompt.json")
                for seed in seeds:
                    yield _edit(job, str(name), str(seed), prompt)
            case _:
                yield Reject(str(item)[:80], "entry of seeds.json is not a prompt with its seeds")


def _list_of(job: Job, name: str, remedy: str) -> Path:
    """The file that lists the edits.

    Raises:
        UserError: If it is not there.
    """
    path = job.src / name
    if not path.exists() and (job.src.suffix == ".parquet" or next(job.src.rglob("*.parquet"), None) is not None):
        raise UserError(f"SRC: {job.src} holds the pictures in .parquet: convert it as kind `parquet`")
    return existing(path, "SRC", remedy)


def _prompt(job: Job, name: str) -> dict[str, Any] | str:
    """The instruction, and the captions before and after; the reason if they cannot be read."""
    if fault := path_fault(name):
        return fault.replace("picture", "prompt.json")
    try:
        record = next(records(job.src / name, job.encoding))
    except (UserError, StopIteration) as error:
        return "prompt.json broken" if (job.src / name).is_file() or not error.args else "prompt.json missing"
    if isinstance(record, Broken):
        return f"prompt.json {'broken' if record.reason == 'broken json' else 'is ' + record.reason}"
    return record if isinstance(record, dict) else "prompt.json broken"


def _edit(job: Job, name: str, seed: str, prompt: dict[str, Any] | str) -> RawSample | Reject:
    where = f"{name}/{seed}"
    if isinstance(prompt, str):
        return Reject(where, prompt)
    before, change, after = (one_line(prompt.get(key)) for key in ("input", "edit", "output"))
    if not change or not after:
        return Reject(where, "no instruction" if not change else "no caption")
    pictures = tuple(
        file_in(job.src, f"{key}.jpg", caption=caption, caption_by="file", media_key=key)
        for key, caption in ((f"{where}_0", before), (f"{where}_1", after))
    )
    turns = (Turn("user", (0, change)), Turn("assistant", (edited(where, change), 1)))
    return RawSample(where, "edit", turns, pictures)


def magicbrush(job: Job) -> RawSamples:
    """A conversation for every session: its pictures lie in ``images/<session>/``."""
    path = _list_of(job, "edit_sessions.json", "it is the folder with edit_sessions.json and images/")
    folder = job.images or job.src / "images"
    with Captions(job) as captions:
        for name, edits in pairs(path, job.encoding):
            yield _session(folder, captions, str(name), edits)


def _session(folder: Path, captions: Captions, name: str, edits: Any) -> RawSample | Reject:
    turns: list[Turn] = []
    pictures: list[PictureFile] = []
    places: dict[str, int] = {}

    def place(file: object) -> int:
        if not isinstance(file, str) or not file:
            raise TypeError("no name of a file")
        if file not in places:
            places[file] = len(pictures)
            caption, by = captions.of(file)
            # An absolute name stays one, and is refused as such, behind the session's folder too.
            path = file if path_fault(file) else f"{name}/{file}"
            pictures.append(file_in(folder, path, caption=caption, caption_by=by, media_key=file))
        return places[file]

    if not isinstance(edits, list) or not edits:
        return Reject(name, "session is not a list of edits")
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
