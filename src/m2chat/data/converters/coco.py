"""COCO 2014 captions: one sample per picture; one of its captions is drawn by seed, all are kept in ``meta``.

``--sample 30000`` is the usual evaluation on val2014. Which pictures and captions those are depends on the annotation
file and the seed alone; ``captions.jsonl`` lists them by ``image_id`` and ``ann_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import items
from m2chat.data.converters.raw import Job, PictureFile, RawSamples, Reject, caption_pair, existing, inside, rank
from m2chat.data.sources import one_line
from m2chat.errors import UserError

LIST = "captions.jsonl"


@dataclass(frozen=True)
class _Choice:
    """A picture and the caption that was drawn for it; -1 and empty if it has none."""

    image_id: int
    file: str
    license: str
    ann_id: int
    captions: tuple[str, ...]

    @property
    def caption(self) -> str:
        return self.captions[0] if self.captions else ""


def samples(job: Job) -> RawSamples:
    """A caption pair for every chosen picture, by image id."""
    split = job.split or "val2014"
    folder = existing(job.images or job.src / split, "--images", f"it is the folder of the {split} pictures")
    for choice in _choices(job):
        if not choice.captions:
            yield Reject(str(choice.image_id), "no caption")
            continue
        path = inside(folder, choice.file)
        picture = PictureFile(path, caption=choice.caption, caption_by="human", media_key=choice.file)
        meta = {"image_id": choice.image_id, "ann_id": choice.ann_id, "captions": list(choice.captions)}
        yield caption_pair(str(choice.image_id), picture, job.form, meta, choice.license)


def lists(job: Job) -> Iterable[tuple[str, Iterable[Any]]]:
    """The list of chosen pictures and captions, whether or not the files are there."""
    rows = (
        {"image_id": choice.image_id, "ann_id": choice.ann_id, "caption": choice.caption}
        for choice in _choices(job)
        if choice.captions
    )
    return [(LIST, rows)]


def _choices(job: Job) -> Iterator[_Choice]:
    """The pictures that the seed selects, by image id."""
    path = _annotations(job)
    texts: dict[int, list[tuple[int, str]]] = {}
    for row in items(path, "annotations"):
        # Some captions end in a line break, which once shifted a whole list of prompts by a line.
        if caption := one_line(row.get("caption")):
            texts.setdefault(row["image_id"], []).append((row["id"], caption))
    terms = {row["id"]: str(row.get("url") or row.get("name") or "") for row in items(path, "licenses")}
    images = {row["id"]: (row["file_name"], terms.get(row.get("license"), "")) for row in items(path, "images")}
    chosen = sorted(images)
    if job.sample:
        captioned = [number for number in chosen if number in texts]
        if len(captioned) < job.sample:
            raise UserError(f"--sample {job.sample}: {path} has {len(captioned)} pictures with captions; ask for fewer")
        chosen = sorted(sorted(captioned, key=lambda number: rank(f"{job.seed}/{number}"))[: job.sample])
    for number in chosen:
        rows = sorted(texts.get(number, ()))
        place = rank(f"{job.seed}/{number}/caption") % len(rows) if rows else 0
        # The drawn caption stands first: it is the sample's, the others are further references.
        captions = tuple(caption for _, caption in [*rows[place : place + 1], *rows[:place], *rows[place + 1 :]])
        yield _Choice(number, *images[number], rows[place][0] if rows else -1, captions)


def _annotations(job: Job) -> Path:
    path = job.src / "annotations" / f"captions_{job.split or 'val2014'}.json"
    return existing(
        path, "SRC", "it is the folder that holds annotations/captions_<split>.json; --split names the split"
    )
