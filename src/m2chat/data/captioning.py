"""Missing captions of shards, written by a model; a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2chat.data.converters.progress import index_of
from m2chat.data.images import BadImage, load_image
from m2chat.data.manifest import Listed, write_index
from m2chat.data.shards import Group, Shard, open_shard, write_tar
from m2chat.data.sources import BadSample, json_of, pair_caption, pair_picture, read_record
from m2chat.errors import UserError
from m2chat.files import locked, write_whole

_NOTE = "captioned.json"
"""File that records which shards are being captioned, by which model, and which of them are done."""


class Captioner(Protocol):
    """A model that describes pictures.

    Args:
        name: Origin of its captions, as ``caption_by`` of the records: ``model:<name>``.
    """

    name: str

    def captions(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Captions of pictures, RGB (H, W, 3), 0-255."""
        ...


def caption_shards(paths: Sequence[Path], folder: Path, captioner: Captioner, batch_size: int) -> dict[str, Any]:
    """Copies shards and writes the captions that are missing or only the text of a turn, of pairs and of conversations.

    Args:
        paths: Shards.
        folder: Target folder; shards in it that are done are kept.
        captioner: Model.
        batch_size: Pictures at once.

    Returns:
        The content of ``index.json``.

    Raises:
        UserError: If the folder holds the shards themselves, captions of others or by another model, or something
            else, or another process writes to it.
    """
    if any(path.parent.resolve() == folder.resolve() for path in paths):
        raise UserError(f"DST: {folder} holds the shards themselves: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=False):
        return _caption_shards(paths, folder, captioner, batch_size)


def _caption_shards(paths: Sequence[Path], folder: Path, captioner: Captioner, batch_size: int) -> dict[str, Any]:
    note = _begin(folder, captioner.name, paths)
    for path in paths:
        if path.name not in note["done"] or not (folder / path.name).is_file():
            bad: Counter[str] = Counter()
            write_tar(folder / path.name, _captioned(open_shard(path), captioner, batch_size, bad))
            note["done"][path.name] = bad
            write_whole(folder / _NOTE, [json.dumps(note, indent=1), "\n"])
    bad = sum((Counter(note["done"][path.name]) for path in paths), Counter())
    kinds: Counter[str] = Counter()
    shards, pictures = [], 0
    for path in paths:
        entries = open_shard(folder / path.name).entries
        kinds.update(entry.kind for entry in entries)
        pictures += sum(suffix not in ("json", "txt") for entry in entries for suffix, _, _ in entry.members)
        shards.append(Listed.of(folder / path.name, len(entries)))
    index = index_of({"captions": captioner.name}, shards, kinds, pictures, 0, bad)
    write_index(folder, index)
    return index


def _begin(folder: Path, writer: str, paths: Sequence[Path]) -> dict[str, Any]:
    """The note of a former run in the target folder, else a new one."""
    remedy = "choose another folder, or delete this one to start anew"
    now: dict[str, Any] = {"captions": writer, "of": {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in paths}}
    path = folder / _NOTE
    if path.is_file():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {key: before.get(key) for key in now} != now:
            raise UserError(
                f"DST: {folder} holds captions of other shards, or by another model than {writer}: {remedy}"
            )
        return before
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"DST: {folder} is not empty: {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(now | {"done": {}}, indent=1), "\n"])
    return now | {"done": {}}


def _captioned(shard: Shard, captioner: Captioner, size: int, bad: Counter[str]) -> Iterator[Group]:
    """The samples of a shard with all their captions, otherwise unchanged.

    Args:
        shard: Shard.
        captioner: Model.
        size: Samples that are read together, and pictures that are captioned together.
        bad: Counter of the samples that are left out, by reason.
    """
    for start in range(0, len(shard.entries), size):
        group = []
        pictures: list[NDArray[np.uint8]] = []
        for number in range(start, min(start + size, len(shard.entries))):
            try:
                members = shard.members(number)
                record = read_record(members)
                images = record.images if record else ()
                places = [i for i, image in enumerate(images) if not image.is_captioned]
                wanted = [images[i].member for i in places]
                if record is None and not pair_caption(members, json_of(members)):
                    places, wanted = [0], [pair_picture(members)]
                decoded = [load_image(members[member]) for member in wanted]
            except KeyError:
                bad["picture missing"] += 1
            except (BadSample, BadImage) as error:
                bad[error.reason] += 1
            else:
                group.append((shard.entries[number].key, members, record, places))
                pictures += decoded
        batches = [pictures[first : first + size] for first in range(0, len(pictures), size)]
        texts = iter([text for batch in batches for text in captioner.captions(batch)])
        for key, members, record, places in group:
            if record is None and places:
                written = {"caption": next(texts), "caption_by": captioner.name}
                members["txt"] = written["caption"].encode()
                members["json"] = json.dumps(json_of(members) | written, ensure_ascii=False).encode()
            elif record is not None and places:
                captions = {i: {"caption": next(texts), "caption_by": captioner.name} for i in places}
                images = tuple(image.model_copy(update=captions.get(i)) for i, image in enumerate(record.images))
                members["json"] = record.model_copy(update={"images": images}).to_json()
            yield key, members
