"""The emoji world's data sets: caption pairs and conversations, made from the shipped pictures on first use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from m2chat.data.images import save_png
from m2chat.data.shards import write_groups, write_shards
from m2chat.worlds.emoji.captions import caption_of, captions_of
from m2chat.worlds.emoji.conversations import ConversationMaker
from m2chat.worlds.emoji.pictures import ATTRIBUTIONS, PICTURES, read_pictures
from m2chat.worlds.emoji.scenes import LICENSES, Pictures, share, split_of
from m2chat.worlds.emoji.subjects import Split
from m2chat.worlds.shared import generate_once

VERSION = 12
"""Raised whenever the generated data change, so that old shards are made anew."""
SEED = 0
TALKS: dict[str, dict[Split, int]] = {
    "instruct": {"train": 10000, "val": 40, "test": 150},
    "wish": {"train": 14000, "val": 40, "test": 150},
    "smalltalk": {"train": 4000, "val": 20, "test": 60},
    "unknown": {"train": 2000, "val": 20, "test": 60},
    "ask": {"train": 2000, "val": 40, "test": 150},
    "similar": {"train": 1500, "val": 20, "test": 60},
    "edit": {"train": 4000, "val": 40, "test": 150},
    "dialogue": {"train": 3000, "val": 40, "test": 150},
    "mixed": {"train": 2000, "val": 20, "test": 60},
    "story": {"train": 2000, "val": 15, "test": 40},
}
"""Numbers of conversations of each data set."""
_VALIDATION_SHARE = 0.02


def _places(pictures: Pictures) -> dict[str, list[int]]:
    """Indices of the pictures of ``train``, ``val`` and ``test``.

    The test split is what no training sees: held-out pairs of concept and style, and held-out combinations. The
    validation pictures are missing from ``train`` only; the pretrained networks may know them.
    """
    places: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, (scene, split) in enumerate(zip(pictures.scenes, split_of(pictures.scenes), strict=True)):
        is_validation = share(f"val/{scene.file}") < _VALIDATION_SHARE
        places["test" if split != "train" else "val" if is_validation else "train"].append(index)
    return places


def _chosen(pictures: Pictures, indices: list[int], split: str) -> list[tuple[int, int]]:
    """Pictures of a split, and the number of the caption among its `captions_of` that each is paired with.

    Each picture has its exact caption, which names the style. In ``train`` those without attributes have a free one
    too: they are less than half of the pictures, and what people speak of.
    """
    indices = sorted(indices, key=lambda i: share(f"order/{i}"))
    twice = [index for index in indices if pictures.scenes[index].is_plain] if split == "train" else []
    # The free captions go behind the exact ones of all pictures, so that a shard holds no picture twice.
    return [*((i, 0) for i in indices), *((i, 2) for i in twice)]


def _unstyled(pictures: Pictures, indices: list[int]) -> list[tuple[int, int]]:
    """One picture of each exact caption that names no style, as half of the captions in conversations."""
    first: dict[str, int] = {}
    for index in sorted(indices, key=lambda i: share(f"unstyled/{i}")):
        first.setdefault(caption_of(pictures.scenes[index], style=False), index)
    return [(index, 1) for index in first.values()]


def _pairs(pictures: Pictures, chosen: list[tuple[int, int]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Caption pairs as img2dataset writes them: a picture, a text and a record, one key."""
    for place, (index, number) in enumerate(chosen):
        scene = pictures.scenes[index]
        caption = captions_of(scene, 3)[number]  # the two exact ones, with the style and without, stand first
        record = {
            "caption": caption,
            "key": f"{place:09d}",
            "status": "success",
            "width": pictures.pixels.shape[2],
            "height": pictures.pixels.shape[1],
            "license": LICENSES[scene.style],
            "attribution": ATTRIBUTIONS[scene.style],
            "file": scene.file,
            "scenes": [scene.attributes],
        }
        yield (
            f"{place:09d}",
            {
                "png": save_png(pictures.pixels[index]),
                "txt": caption.encode(),
                "json": json.dumps(record, ensure_ascii=False).encode(),
            },
        )


def write_world(root: Path, pictures: Path = PICTURES, talks: Mapping[str, Mapping[Split, int]] | None = None) -> None:
    """Generates every data set of the emoji world under a folder, unless they are there already.

    Args:
        root: Folder to write, such as ``data/pocket/shards``; see `generate_once`.
        pictures: Folder of the shipped pictures.
        talks: Numbers of conversations of each data set and split; `TALKS` if None.

    Raises:
        UserError: If the shipped pictures are missing or damaged.
    """

    def write(part: Path) -> None:
        shipped = read_pictures(pictures)
        for split, indices in _places(shipped).items():
            write_groups(_pairs(shipped, _chosen(shipped, indices, split)), part / "emoji" / split, "emoji", 1000)
            if split == "train":
                write_groups(_pairs(shipped, _unstyled(shipped, indices)), part / "unstyled" / split, "unstyled", 1000)
        for name, counts in (TALKS if talks is None else talks).items():
            for of, count in counts.items():
                maker = ConversationMaker(of, SEED, shipped)
                made = (maker.make(name, number) for number in range(count))
                write_shards(made, part / name / of, name, 1000)

    generate_once(root, {"version": VERSION, "seed": SEED}, write)
