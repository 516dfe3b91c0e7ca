"""COCO 2014 captions: one sample per picture; one of its captions is drawn by seed, all are kept in ``meta``.

``--sample 30000`` is the usual evaluation on val2014. Which pictures and captions those are depends on the annotation
file and the seed alone; ``captions.jsonl`` lists them by ``image_id`` and ``ann_id``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import items
from m2chat.data.converters.raw import Job, RawSamples, Reject, caption_pair, existing, file_in, rank
from m2chat.data.sources import one_line
from m2chat.errors import UserError

LIST = "captions.jsonl"


@dataclass(frozen=True)
class _Choice:
    """A picture and the caption that was drawn for it; -1 and empty if it has none."""

    image_id: int | str
    file: object
    license: str
    ann_id: int | str
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
        picture = file_in(
            folder, choice.file, caption=choice.caption, caption_by="human", media_key=str(choice.file or "")
        )
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
    texts: dict[int | str, list[tuple[int | str, str]]] = {}
    for row in _objects(job, path, "annotations", ("image_id", "id", "caption")):
        # Some captions end in a line break, which once shifted a whole list of prompts by a line.
        if caption := one_line(row["caption"]):
            texts.setdefault(_id(path, row["image_id"]), []).append((_id(path, row["id"]), caption))
    terms: dict[Any, str] = {}
    with suppress(UserError):  # a file without licences will do
        terms = {
            row.get("id"): str(row.get("url") or row.get("name") or "") for row in _objects(job, path, "licenses", ())
        }
    images = {
        _id(path, row["id"]): (row["file_name"], terms.get(row.get("license"), ""))
        for row in _objects(job, path, "images", ("id", "file_name"))
    }
    _require_join(path, images.keys(), texts.keys())
    chosen = _ordered(path, images)
    if job.sample:
        captioned = [number for number in chosen if number in texts]
        if len(captioned) < job.sample:
            raise UserError(f"--sample {job.sample}: {path} has {len(captioned)} pictures with captions; ask for fewer")
        chosen = _ordered(path, sorted(captioned, key=lambda number: rank(f"{job.seed}/{number}"))[: job.sample])
    for number in chosen:
        rows = sorted(texts.get(number, ()), key=lambda row: (str(type(row[0])), row))
        place = rank(f"{job.seed}/{number}/caption") % len(rows) if rows else 0
        # The drawn caption stands first: it is the sample's, the others are further references.
        captions = tuple(caption for _, caption in [*rows[place : place + 1], *rows[:place], *rows[place + 1 :]])
        yield _Choice(number, *images[number], rows[place][0] if rows else -1, captions)


def _objects(job: Job, path: Path, place: str, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The entries of a list of the file.

    Raises:
        UserError: If the file has no such list, or an entry lacks a key.
    """
    for number, row in enumerate(items(path, place, job.encoding)):
        if not isinstance(row, dict) or any(key not in row for key in keys):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}: entry {number} of {place!r} needs {' and '.join(keys)}; it has {has}")
        yield row


def _id(path: Path, value: object) -> int | str:
    """An id; the text of a number is the number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{path}: the id {value!r} is neither a number nor a text; mend the file")
    return int(value) if isinstance(value, str) and value.isdecimal() and str(int(value)) == value else value


def _ordered(path: Path, ids: Iterable[int | str]) -> list[int | str]:
    texts = [name for name in ids if isinstance(name, str)]
    numbers = [name for name in ids if isinstance(name, int)]
    if texts and numbers:
        raise UserError(
            f"{path}: the ids of pictures are of two types: {len(numbers)} numbers such as {numbers[0]}, and "
            f"{len(texts)} texts such as {texts[0]!r}; give all of them one type"
        )
    return [*sorted(numbers), *sorted(texts)]


def _require_join(path: Path, images: Collection[int | str], captioned: Collection[int | str]) -> None:
    """Checks that captions belong to pictures.

    Raises:
        UserError: If not one does.
    """
    if images and captioned and not any(name in images for name in captioned):
        raise UserError(
            f"{path}: none of the {len(captioned)} image_id of its annotations is the id of one of its {len(images)} "
            f"images: the first are {next(iter(captioned))!r} and {next(iter(images))!r}; mend the file"
        )


def _annotations(job: Job) -> Path:
    path = job.src / "annotations" / f"captions_{job.split or 'val2014'}.json"
    return existing(
        path, "SRC", "it is the folder that holds annotations/captions_<split>.json; --split names the split"
    )
