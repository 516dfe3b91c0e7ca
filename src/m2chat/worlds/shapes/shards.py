"""The shapes world's data sets: generated on first use, in the layouts of the real ones.

CC3M-like and LAION-like caption pairs lie as img2dataset leaves them and are read in place; everything else is in
the project's schema.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from m2chat.data.images import save_png
from m2chat.data.shards import write_groups, write_shards
from m2chat.data.sources import caption_sample
from m2chat.schema import Image, Kind, Sample
from m2chat.worlds.shapes.captions import alt_text, caption_of, paraphrases
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.scenes import Scene, Split, render
from m2chat.worlds.shared import generate_once

VERSION = 5
"""Raised whenever the generated data change, so that old shards are made anew."""
SEED = 0

_PAIRS: dict[str, dict[Split, int]] = {
    "cc3m": {"train": 9000, "val": 100, "test": 400},
    "laion": {"train": 3000, "val": 50, "test": 100},
}
_TALKS: dict[str, tuple[Kind, dict[Split, int]]] = {
    "smalltalk": ("dialogue", {"train": 1000, "val": 10, "test": 20}),
    "instruct": ("instruct", {"train": 2000, "val": 50, "test": 100}),
    "mmdialog": ("dialogue", {"train": 3000, "val": 40, "test": 150}),
    "mixed": ("dialogue", {"train": 3000, "val": 20, "test": 60}),
    "edit": ("edit", {"train": 3000, "val": 40, "test": 150}),
    "story": ("story", {"train": 800, "val": 15, "test": 40}),
}
_MADE_BY = {"smalltalk": "small_talk", "mmdialog": "dialogue"}
"""Method of the maker, where it has not the data set's name."""
_PARAPHRASED, _PARTIAL = 0.5, 0.1
"""Shares of the CC3M-like training captions that are put in another way than the exact one, or leave something out."""
_COCO: dict[Split, int] = {"train": 200, "val": 100, "test": 400}


def _pairs(name: str, split: Split, count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Caption pairs as img2dataset writes them: a picture, a text and a record, one key."""
    maker = ConversationMaker(split, SEED + (1 if name == "laion" else 0))
    for index in range(count):
        scene = maker.scene(1 if maker.rng.random() < 0.5 else 2)
        caption = alt_text(scene) if name == "laion" else caption_of(scene)
        if name == "cc3m" and split == "train":
            caption = _put_otherwise(scene, caption, maker.rng)
        pixels = render(scene, maker.noise)
        height, width = pixels.shape[:2]
        key = f"{index:09d}"
        record = {
            "caption": caption,
            "url": f"https://example.invalid/{name}/{split}/{key}.png",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": width,
            "height": height,
            "original_width": width,
            "original_height": height,
            "scenes": [scene.attributes],
        }
        if name == "laion":
            record |= {"aesthetic": round(maker.rng.uniform(5.0, 7.0), 3), "punsafe": 0.0, "pwatermark": 0.0}
        members = {"png": save_png(pixels), "txt": caption.encode(), "json": json.dumps(record).encode()}
        yield key, members


def _put_otherwise(scene: Scene, caption: str, rng: random.Random) -> str:
    """A training caption: the exact one, a paraphrase, or one without size or place."""
    draw = rng.random()
    if draw < _PARAPHRASED:
        return rng.choice(paraphrases(scene))
    if draw < _PARAPHRASED + _PARTIAL:
        return caption_of(scene, omit=rng.choice((("size",), ("position",), ("size", "position"))))
    return caption


def _coco(split: Split, count: int) -> Iterator[Sample]:
    """Pictures with five captions each; the conversation asks for one of them."""
    maker = ConversationMaker(split, SEED + 2)
    for index in range(count):
        scene = maker.scene(1 if maker.rng.random() < 0.5 else 2)
        captions = paraphrases(scene)
        pixels = render(scene, maker.noise)
        image = Image(pixels, maker.rng.choice(captions), (pixels.shape[0], pixels.shape[1]))
        meta = {"captions": captions, "scenes": [scene.attributes], "image_id": index}
        yield caption_sample(f"coco/{index:06d}", "coco", image, meta)


def _talks(name: str, split: Split, count: int, training_texts: set[tuple[str, ...]]) -> Iterator[Sample]:
    """Conversations of a kind; the text of a held-out one never equals that of a training one.

    Args:
        name: Name of the data set.
        split: Split of it.
        count: Number of conversations.
        training_texts: Texts of the training conversations: filled for ``train``, avoided for the other splits.
    """
    kind, _ = _TALKS[name]
    maker = ConversationMaker(split, SEED)
    make = getattr(maker, _MADE_BY.get(name, name))
    index = 0
    while index < count:
        sample = make().sample(kind, name, index)
        words = tuple(turn.text for turn in sample.turns)
        if split == "train":
            training_texts.add(words)
        elif words in training_texts and sum(turn.role == "user" for turn in sample.turns) > 1:
            continue
        index += 1
        yield sample


def write_world(root: Path) -> None:
    """Generates every data set of the shapes world under a folder, unless they are there already.

    Args:
        root: Folder to write, such as ``data/micro/shards``; see `generate_once`.
    """
    generate_once(root, {"version": VERSION, "seed": SEED}, _generate)


def _generate(part: Path) -> None:
    splits: tuple[Split, ...] = ("train", "val", "test")
    training_texts: dict[str, set[tuple[str, ...]]] = {name: set() for name in _TALKS}
    for split in splits:
        for name, counts in _PAIRS.items():
            write_groups(_pairs(name, split, counts[split]), part / name / split, name, 1000)
        for name, (_, counts) in _TALKS.items():
            write_shards(_talks(name, split, counts[split], training_texts[name]), part / name / split, name, 500)
        write_shards(_coco(split, _COCO[split]), part / "coco" / split, "coco", 500)
