"""VIST: stories in five photos. A request opens the story, then every reply is a sentence and its photo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Captions, Lookup, items, pairs
from m2chat.data.converters.raw import OPENERS, Job, PictureFile, RawSample, RawSamples, Reject, existing, inside, pick
from m2chat.data.record import BY_TURN
from m2chat.data.sources import one_line
from m2chat.schema import Turn

_SUFFIXES = ("jpg", "png", "gif", "jpeg", "webp")


def samples(job: Job) -> RawSamples:
    """The official files: ``sis/<split>.story-in-sequence.json``, ``dii/<split>.description-in-isolation.json``."""
    split = job.split or "train"
    path = job.src / "sis" / f"{split}.story-in-sequence.json"
    existing(path, "SRC", "it is the folder with sis/<split>.story-in-sequence.json; --split names the split")
    folder = job.images or _first_folder(job.src / "images" / split, job.src / "images", job.src / split)
    described = job.src / "dii" / f"{split}.description-in-isolation.json"
    with Captions(job) as captions, Lookup(job.work / "dii.sqlite", _descriptions(described)) as dii:
        rows = (row[0] for row in items(path, "annotations") if row)
        for story, group in groupby(rows, key=lambda row: str(row.get("story_id"))):
            parts = []
            for row in sorted(group, key=lambda row: int(row.get("worker_arranged_photo_order") or 0)):
                photo = str(row.get("photo_flickr_id"))
                caption, by = captions.of(photo)
                if not caption and (description := dii.get(photo)):
                    caption, by = description, "human"
                words = one_line(row.get("original_text")) or one_line(row.get("text"))
                parts.append(
                    (words, PictureFile(_photo(folder, photo), caption=caption, caption_by=by, media_key=photo))
                )
            yield _story(job, story, parts)


def cleaned(job: Job) -> RawSamples:
    """The files of other projects: ``<split>_cleaned.json`` and ``<split>_image_mapping.json``."""
    split = job.split or "train"
    path = job.src / f"{split}_cleaned.json"
    existing(path, "SRC", "it is the folder with <split>_cleaned.json; --split names the split")
    mapping = existing(job.src / f"{split}_image_mapping.json", "SRC", "it maps each image to its file")
    folder = job.images or job.src
    with Captions(job) as captions, Lookup(job.work / "mapping.sqlite", pairs(mapping)) as places:
        for story, rows in pairs(path):
            try:
                parts = []
                for row in sorted(rows, key=lambda row: int(row["sequence_index"])):
                    photo = str(row["image_id"])
                    caption, by = captions.of(photo)
                    file = inside(folder, str(places.get(photo) or ""))
                    picture = PictureFile(file, caption=caption, caption_by=by, media_key=photo)
                    parts.append((one_line(row["caption"]), picture))
            except (KeyError, TypeError, ValueError):
                yield Reject(str(story), "story without captions, images or order")
            else:
                yield _story(job, str(story), parts)


def _story(job: Job, name: str, parts: Sequence[tuple[str, PictureFile]]) -> RawSample | Reject:
    turns = [Turn("user", (pick(OPENERS, name),))]
    pictures = []
    for index, (words, picture) in enumerate(parts):
        if not words:
            return Reject(name, "story with an empty sentence")
        if not picture.caption and job.text_as_caption:
            picture = PictureFile(picture.path, caption=words, caption_by=BY_TURN, media_key=picture.media_key)
        turns.append(Turn("assistant", (words, index)))
        pictures.append(picture)
    return RawSample(name, "story", tuple(turns), tuple(pictures))


def _descriptions(path: Path) -> Any:
    """The first description of each photo."""
    if path.is_file():
        for row in items(path, "annotations"):
            if row and (words := one_line(row[0].get("original_text")) or one_line(row[0].get("text"))):
                yield str(row[0].get("photo_flickr_id")), words


def _first_folder(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _photo(folder: Path, name: str) -> str:
    """The file of a photo, with any of the suffixes."""
    for suffix in _SUFFIXES:
        path = inside(folder, f"{name}.{suffix}")
        if path and Path(path).is_file():
            return path
    return ""
