"""VIST: stories in five photos. A request opens the story, then every reply is a sentence and its photo."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Captions, Groups, Lookup, items, pairs
from m2chat.data.converters.raw import (
    OPENERS,
    Job,
    PictureFile,
    RawSample,
    RawSamples,
    Reject,
    existing,
    file_in,
    id_of,
    pick,
)
from m2chat.data.record import BY_TURN
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.schema import Turn

_SUFFIXES = ("jpg", "png", "gif", "jpeg", "webp")


def samples(job: Job) -> RawSamples:
    """The official files: ``sis/<split>.story-in-sequence.json``, ``dii/<split>.description-in-isolation.json``."""
    split = job.split or "train"
    path = job.src / "sis" / f"{split}.story-in-sequence.json"
    existing(path, "SRC", "it is the folder with sis/<split>.story-in-sequence.json; --split names the split")
    folder = job.images or _first_folder(job.src / "images" / split, job.src / "images", job.src / split)
    described = job.src / "dii" / f"{split}.description-in-isolation.json"
    with (
        Captions(job) as captions,
        Lookup(job.work / "dii.sqlite", _descriptions(described, job.encoding)) as dii,
        Groups(job.work / "stories.sqlite", _by_story(path, job.encoding)) as stories,
    ):
        for story, rows in stories:
            places = [_place(row.get("worker_arranged_photo_order")) for row in rows]
            photos = [str(row.get("photo_flickr_id") or "") for row in rows]
            if not story or not all(photos):
                yield Reject(story, "part without story_id or photo_flickr_id")
                continue
            if None in places or len(set(places)) < len(places):
                yield Reject(story, "story of parts without an order, or with one twice")
                continue
            parts = []
            for _, row, photo in sorted(zip(places, rows, photos, strict=True), key=lambda part: part[0] or 0):
                caption, by = captions.of(photo)
                if not caption and (description := dii.get(photo)):
                    caption, by = description, "human"
                words = one_line(row.get("original_text")) or one_line(row.get("text"))
                parts.append((words, photo_file(folder, photo, caption=caption, caption_by=by, media_key=photo)))
            yield _story(job, story, parts)


def _by_story(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of all stories, each with the id of its story; empty for a part without one.

    Raises:
        UserError: If an annotation is not a part of a story.
    """
    for number, annotation in enumerate(items(path, "annotations", encoding)):
        for row in annotation if isinstance(annotation, list) else [annotation]:
            if not isinstance(row, dict) or not row.keys() & {"story_id", "photo_flickr_id"}:
                has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(
                    f"{path}: annotation {number} is no part of a story: it needs story_id, photo_flickr_id, text and "
                    f"worker_arranged_photo_order, and has {has or 'nothing'}; is it another file?"
                )
            yield id_of(row.get("story_id"), "").strip(), row


def _place(value: object) -> int | None:
    """A place in an order, also as text; None if it is none."""
    try:
        return int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    except ValueError:
        return None


def cleaned(job: Job) -> RawSamples:
    """The files of other projects: ``<split>_cleaned.json`` and ``<split>_image_mapping.json``."""
    split = job.split or "train"
    path = job.src / f"{split}_cleaned.json"
    existing(path, "SRC", "it is the folder with <split>_cleaned.json; --split names the split")
    mapping = existing(job.src / f"{split}_image_mapping.json", "SRC", "it maps each image to its file")
    folder = job.images or job.src
    with Captions(job) as captions, Lookup(job.work / "mapping.sqlite", pairs(mapping, job.encoding)) as files:
        for story, rows in pairs(path, job.encoding):
            try:
                order = [_place(row["sequence_index"]) for row in rows]
                photos = [id_of(row["image_id"], "") for row in rows]
                words = [one_line(row["caption"]) for row in rows]
            except (KeyError, TypeError):
                yield Reject(str(story), "story without captions, images or order")
                continue
            if not all(photos):
                yield Reject(str(story), "part without image_id")
            elif None in order or len(set(order)) < len(order):
                yield Reject(str(story), "story of parts without an order, or with one twice")
            else:
                parts = []
                for _, text, photo in sorted(zip(order, words, photos, strict=True), key=lambda part: part[0] or 0):
                    caption, by = captions.of(photo)
                    facts: dict[str, Any] = {"caption": caption, "caption_by": by, "media_key": photo}
                    file = files.get(photo)
                    known = PictureFile("", fault="image is not in the mapping", **facts)
                    parts.append((text, known if file is None else file_in(folder, file, **facts)))
                yield _story(job, str(story), parts)


def _story(job: Job, name: str, parts: Sequence[tuple[str, PictureFile]]) -> RawSample | Reject:
    turns = [Turn("user", (pick(OPENERS, name),))]
    pictures = []
    for index, (words, picture) in enumerate(parts):
        if not words:
            return Reject(name, "story with an empty sentence")
        if not picture.caption and job.text_as_caption:
            picture = replace(picture, caption=words, caption_by=BY_TURN)
        turns.append(Turn("assistant", (words, index)))
        pictures.append(picture)
    return RawSample(name, "story", tuple(turns), tuple(pictures))


def _descriptions(path: Path, encoding: str) -> Iterator[tuple[str, str]]:
    """The first description of each photo."""
    if path.is_file():
        for annotation in items(path, "annotations", encoding):
            for row in annotation if isinstance(annotation, list) else [annotation]:
                if isinstance(row, dict) and (words := one_line(row.get("original_text")) or one_line(row.get("text"))):
                    yield str(row.get("photo_flickr_id")), words


def _first_folder(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def photo_file(folder: Path, name: str, **facts: Any) -> PictureFile:
    """The file of a photo, with any of the suffixes."""
    files = (file_in(folder, f"{name}.{suffix}", **facts) for suffix in _SUFFIXES)
    missing = file_in(folder, f"{name}.{_SUFFIXES[0]}", **facts)
    return next((file for file in files if file.path and os.path.lexists(file.path)), missing)
