"""The shipped pictures: WebDataset shards, an emoji a sample, with a strip of its skin tones for each style.

A strip is one lossless WebP of 64 x (64 K) pixels, in the order of the scenes in its JSON. A file a picture would be
half again as large: a tar spends a kilobyte on every member, and the tones of a person differ little.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.data.shards import find_shards, write_groups
from m2chat.errors import UserError
from m2chat.worlds.emoji.captions import captions_of
from m2chat.worlds.emoji.scenes import LICENSES, SIZE, Pictures, Scene, split_of

VERSION = 1
"""Raised whenever the shards' content changes."""
PICTURES = Path("data/pocket/pictures")
"""Where the shipped pictures lie."""
LIMIT = 24 * 2**20
"""Most bytes that may be shipped."""
ATTRIBUTIONS: dict[str, str] = {
    "noto": "Noto Emoji, Google LLC",
    "twemoji": "Twemoji, Twitter, Inc and other contributors",
    "fluent": "Fluent Emoji, Microsoft Corporation",
}
_PER_SHARD = 1000
_SHARED = ("concept", "label", "hair", "gender", "group", "subgroup", "keywords")
"""Fields of a scene that all styles and tones of an emoji share."""


def _strip(pixels: NDArray[np.uint8]) -> bytes:
    """Pictures (K, 64, 64, 3) beside each other as lossless WebP."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(np.concatenate(list(pixels), axis=1))
    picture.save(buffer, format="WEBP", lossless=True, quality=75, method=4)  # method 6: 2 % smaller, 30 times the work
    return buffer.getvalue()


def _groups(pictures: Pictures) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A sample an emoji: what its styles and tones share is written once."""
    splits = split_of(pictures.scenes)

    def emoji(index: int) -> tuple[str, ...]:
        return tuple(str(getattr(pictures.scenes[index], name)) for name in _SHARED)

    order = sorted(range(len(pictures)), key=lambda i: (emoji(i), pictures.scenes[i].style, pictures.scenes[i].hexcode))
    for number, (_, members) in enumerate(itertools.groupby(order, emoji)):
        indices = list(members)
        first = pictures.scenes[indices[0]]
        record: dict[str, Any] = {name: getattr(first, name) for name in _SHARED} | {"styles": {}}
        files: dict[str, bytes] = {}
        for style, of_style in itertools.groupby(indices, lambda i: pictures.scenes[i].style):
            places = list(of_style)
            scenes = [pictures.scenes[i] for i in places]
            files[f"{style}.webp"] = strip = _strip(pictures.pixels[places])
            record["styles"][style] = {
                "license": LICENSES[style],
                "attribution": ATTRIBUTIONS[style],
                "captions": captions_of(scenes[0], 3),
                "package": scenes[0].file.partition(":")[0],
                "pictures": [
                    {"tone": s.tone, "hexcode": s.hexcode, "file": s.file.partition(":")[2], "split": splits[i]}
                    for i, s in zip(places, scenes, strict=True)
                ],
                "sha256": hashlib.sha256(strip).hexdigest(),
            }
        files["json"] = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        yield f"{number:06d}", files


def write_pictures(pictures: Pictures, root: Path) -> list[Path]:
    """Writes the shards; the same pictures always give the same bytes.

    Args:
        pictures: The whole world.
        root: Such as ``data/pocket/pictures``; it appears only when it is complete.

    Returns:
        The shards.

    Raises:
        UserError: If they are larger than may be shipped; nothing has changed then.
    """
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    paths = write_groups(_groups(pictures), part, "emoji", _PER_SHARD)
    total = sum(path.stat().st_size for path in paths)
    if total > LIMIT:
        shutil.rmtree(part)
        raise UserError(f"the shards have {total:,} bytes, more than the {LIMIT:,} that may be shipped")
    shutil.rmtree(root, ignore_errors=True)
    part.rename(root)
    return [root / path.name for path in paths]


def read_pictures(root: Path) -> Pictures:
    """Reads the shipped pictures back: the same scenes and pixels that were written.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    from PIL import Image

    scenes: list[Scene] = []
    pixels: list[NDArray[np.uint8]] = []
    for where, members, record in _samples(root):
        for style, entry in record["styles"].items():
            strip = members.get(f"{style}.webp", b"")
            if hashlib.sha256(strip).hexdigest() != entry["sha256"]:
                raise UserError(f"{where} is damaged: its {style} picture is not the one that was written")
            wide = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
            scenes += _scenes(record, style)
            pixels += [wide[:, place * SIZE : (place + 1) * SIZE] for place in range(len(entry["pictures"]))]
    return Pictures(tuple(scenes), np.stack(pixels))


def read_scenes(root: Path) -> list[Scene]:
    """The scenes of the shipped pictures, without decoding these.

    Raises:
        UserError: If a shard is missing.
    """
    return [scene for _, _, record in _samples(root) for style in record["styles"] for scene in _scenes(record, style)]


def picture_of(concept: str, style: str, root: Path = PICTURES) -> NDArray[np.uint8] | None:
    """The picture of a concept without attributes; None if it is not among those that are here."""
    from PIL import Image

    if not root.is_dir():
        return None
    for _, members, record in _samples(root):
        if record["concept"] == concept and not record["hair"] and not record["gender"] and style in record["styles"]:
            return np.asarray(Image.open(io.BytesIO(members[f"{style}.webp"])).convert("RGB"))[:, :SIZE]
    return None


def _samples(root: Path) -> Iterator[tuple[str, dict[str, bytes], dict[str, Any]]]:
    """Name, members by suffix and record of each sample."""
    for path in find_shards(root, "pictures"):
        with tarfile.open(str(path)) as shard:
            content = [(member.name, file.read()) for member in shard if (file := shard.extractfile(member))]
        for key, group in itertools.groupby(content, lambda item: item[0].partition(".")[0]):
            members = {name.partition(".")[2]: data for name, data in group}
            yield f"sample {key} of {path}", members, json.loads(members["json"])


def _scenes(record: dict[str, Any], style: str) -> list[Scene]:
    shared = {key: record[key] for key in _SHARED} | {"keywords": tuple(record["keywords"])}
    entry = record["styles"][style]
    return [
        Scene(**shared, style=style, tone=row["tone"], hexcode=row["hexcode"], file=f"{entry['package']}:{row['file']}")
        for row in entry["pictures"]
    ]
