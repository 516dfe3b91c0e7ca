"""Pictures in parquet, the form of most data sets on Hugging Face's Hub: caption pairs, and edits.

Each column has a role: ``image`` and ``caption``; or ``source``, ``target`` and ``instruction``, with
``source_caption``, ``target_caption``, ``session`` and ``turn`` where they are there. `ROLES` lists the names by which
they are found.

Only texts are read here; a sample refers to its pictures by file, row group and row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.data.converters.columns import ColumnPicture
from m2chat.data.converters.jsonfiles import Groups
from m2chat.data.converters.raw import (
    Job,
    PictureFile,
    RawSample,
    RawSamples,
    Reject,
    caption_pair,
    edited,
    existing,
    id_of,
    no_caption,
    rank,
)
from m2chat.data.converters.tables import opened_table, parquet_files
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.schema import Turn

ROLES = {
    "image": ("image", "img", "jpg", "png", "picture"),
    "caption": ("caption", "captions", "text", "txt", "title", "prompt"),
    "source": ("source_img", "source_image", "original_image", "input_image"),
    "target": ("target_img", "target_image", "edited_image", "output_image"),
    "instruction": ("instruction", "edit_prompt", "edit_instruction", "edit"),
    "source_caption": ("source_caption", "original_prompt", "input_caption"),
    "target_caption": ("target_caption", "edited_prompt", "output_caption"),
    "session": ("img_id", "session_id"),
    "turn": ("turn_index", "turn"),
    "id": ("id", "image_id", "key"),
}
"""Role to the names of its column; of several that a file has, none is taken without ``--columns``."""
_PICTURES = ("image", "source", "target")
_EDIT = ("source", "target", "instruction")
_PAIR = ("image", "caption")
_SPLIT = re.compile(r"(\w+?)-\d+-of-\d+")


def samples(job: Job) -> RawSamples:
    """A caption pair for every row, or a conversation for every edit or session of edits."""
    files = _files(job)
    names = _roles(job, files[0])
    if "source" not in names:
        for number, row in enumerate(_rows(job, files, names)):
            yield _pair(job, number, row)
    elif "session" in names and "turn" in names:
        numbered = enumerate(_rows(job, files, names))
        keyed = ((id_of(row["session"], f"{number:09d}"), row) for number, row in numbered)
        with Groups(job.work / "sessions.sqlite", keyed) as groups:
            for name, rows in groups:
                yield _session(job, name, rows)
    else:
        for number, row in enumerate(_rows(job, files, names)):
            yield _session(job, id_of(row.get("id"), f"{number:09d}"), [row])


def _files(job: Job) -> list[Path]:
    """The files of the split.

    Raises:
        UserError: If there is none, or there are several splits and none is named.
    """
    files = parquet_files(existing(job.src, "SRC", "it is a .parquet or a folder of them"))
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT.match(path.name)
        splits.setdefault(match[1] if match else path.stem, []).append(path)
    if job.split:
        if job.split not in splits:
            raise UserError(f"--split {job.split}: {job.src} has {', '.join(splits)}")
        return splits[job.split]
    known = [name for name in splits if name in ("train", "validation", "valid", "val", "dev", "test")]
    if len(known) > 1:
        raise UserError(f"SRC: {job.src} holds several splits: choose one by --split {{{','.join(splits)}}}")
    return files


def _roles(job: Job, path: Path) -> dict[str, str]:
    """The column of each role that the files have.

    Raises:
        UserError: If the columns of neither pairs nor edits are there, or several could be one of them.
    """
    with opened_table(path) as file:
        schema = file.schema_arrow
    wished = _wished(job.columns, schema.names, path)
    matches = {role: [name] for role, name in wished.items()}
    for role, aliases in ROLES.items():
        there = [name for name in schema.names if name.lower() in aliases and name not in wished.values()]
        if role not in matches and there:
            matches[role] = there
    forms = [form for form in (_EDIT, _PAIR) if all(role in matches for role in form)]
    # With the columns of both, the edit is meant, unless the pair's are named.
    form = next((form for form in forms if all(role in wished for role in form)), forms[0] if forms else None)
    if form is None:
        raise UserError(
            f"SRC: {path} has the columns {', '.join(f'{field.name} ({field.type})' for field in schema)}: name those "
            "of pairs, --columns image=...,caption=..., or of edits, --columns source=...,target=...,instruction=..."
        )
    for role in form:
        if len(matches[role]) > 1:
            raise UserError(
                f"SRC: {path}: the columns {' and '.join(matches[role])} could each be the {role}: choose by "
                f"--columns {role}={matches[role][0]}"
            )
    more = ("source_caption", "target_caption", "session", "turn", "id") if form is _EDIT else ("id",)
    return {role: names[0] for role, names in matches.items() if role in (*form, *more)}


def _wished(text: str, names: Sequence[str], path: Path) -> dict[str, str]:
    """The roles of ``--columns``.

    Raises:
        UserError: If a role is unknown, or the file has no such column.
    """
    wished = {}
    for item in filter(None, text.split(",")):
        role, _, name = (part.strip() for part in item.partition("="))
        if role not in ROLES:
            raise UserError(f"--columns {item}: {role!r} is no role; choose of {', '.join(ROLES)}")
        if name not in names:
            raise UserError(f"--columns {item}: {path} has no column {name!r}; it has {', '.join(names)}")
        wished[role] = name
    return wished


def _rows(job: Job, files: Sequence[Path], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Texts of each row by role, the places of its pictures for `_picture`, and the rest as ``meta``."""
    import pyarrow

    for path in files:
        with opened_table(path) as file:
            schema = file.schema_arrow
            if lost := [name for name in names.values() if name not in schema.names]:
                if not file.metadata.num_rows:
                    continue
                raise UserError(f"SRC: {path} lacks the columns {', '.join(lost)} that {files[0].name} has")
            plain = [
                field.name
                for field in schema
                if field.name not in names.values() and not pyarrow.types.is_nested(field.type)
                and not pyarrow.types.is_binary(field.type) and not pyarrow.types.is_large_binary(field.type)
            ]  # fmt: skip
            texts = [name for role, name in names.items() if role not in _PICTURES]
            wanted = [*texts, *plain, *_path_leaves(schema, names)]
            for group in range(file.num_row_groups):
                count = 0
                for batch in file.iter_batches(1000, row_groups=[group], columns=wanted):
                    for row in batch.to_pylist():
                        known = {role: row.get(name) for role, name in names.items()}
                        for role in _PICTURES:
                            if role in names:
                                known[role] = [str(path), count, group, names[role], _path_of(row.get(names[role]))]
                        meta = {name: _jsonable(row[name]) for name in plain if row[name] is not None}
                        yield {**known, "meta": meta}
                        count += 1


def _path_leaves(schema: Any, names: Mapping[str, str]) -> list[str]:
    """What to read of the columns of pictures to know their paths, without their bytes."""
    import pyarrow

    leaves = []
    for role in _PICTURES:
        if role in names:
            kind = schema.field(names[role]).type
            if pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
                leaves.append(f"{names[role]}.path")
            elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
                leaves.append(names[role])
    return leaves


def _path_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("path")
    return value if isinstance(value, str) else ""


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _picture(job: Job, where: Sequence[Any], caption: str) -> PictureFile:
    path, row, group, column, name = where
    by = "file" if caption else ""
    folder = str(job.images or Path(path).parent)
    return ColumnPicture(
        path, row, caption=caption, caption_by=by, media_key=name, group=group, column=column, folder=folder
    )


def _pair(job: Job, number: int, row: Mapping[str, Any]) -> RawSample | Reject:
    name = id_of(row.get("id"), f"{number:09d}")
    value = row["caption"]
    values = value if isinstance(value, list) else [value]
    captions = [text for text in map(one_line, values) if text]
    if not captions:
        return Reject(name, no_caption(next(iter(values), None)))
    # As for COCO: one of several captions is drawn by the id, and stands before the others.
    place = rank(f"{name}/caption") % len(captions)
    captions = [captions.pop(place), *captions]
    meta = {**row["meta"], **({"captions": captions} if len(captions) > 1 else {})}
    picture = _picture(job, row["image"], captions[0])
    return caption_pair(name, picture, job.form, meta)


def _session(job: Job, name: str, rows: Sequence[Mapping[str, Any]]) -> RawSample | Reject:
    """A conversation of the edits of one picture, in the order of their turns."""
    numbers = [row.get("turn") for row in rows]
    if len(rows) > 1:
        if not all(isinstance(number, int) for number in numbers) or len(set(numbers)) < len(numbers):
            return Reject(name, "session of turns without a number, or with one twice")
        rows = sorted(rows, key=lambda row: int(row["turn"]))
    # Paths tell which pictures are the same only where every new one has another.
    paths = [rows[0]["source"][4], *(row["target"][4] for row in rows)]
    certain = all(paths) and len(set(paths)) == len(paths)
    turns: list[Turn] = []
    pictures: list[PictureFile] = []
    places: dict[str, int] = {}

    def place(where: Sequence[Any], caption: object) -> int:
        pictures.append(_picture(job, where, one_line(caption)))
        if certain:
            places[where[4]] = len(pictures) - 1
        return len(pictures) - 1

    for row in rows:
        change = one_line(row["instruction"])
        if not change:
            return Reject(name, "no instruction")
        # A picture of an earlier turn is not sent again: the turn refers to it as its context.
        context = places.get(row["source"][4])
        shown = () if context is not None else (place(row["source"], row.get("source_caption")),)
        turns.append(Turn("user", (*shown, change), context=context))
        answer = edited(f"{name}/{len(turns)}", change)
        turns.append(Turn("assistant", (answer, place(row["target"], row.get("target_caption")))))
    return RawSample(name, "edit", tuple(turns), tuple(pictures), rows[0]["meta"] if len(rows) == 1 else {})
