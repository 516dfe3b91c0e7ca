"""The shipped pictures: WebDataset shards, a strip of one emoji's skin tones a sample, each with its licence.

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
from dataclasses import asdict
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
LIMIT = 24 * 2**20
"""Most bytes that may be shipped."""
ATTRIBUTIONS: dict[str, str] = {
    "noto": "Noto Emoji, Google LLC",
    "twemoji": "Twemoji, Twitter, Inc and other contributors",
    "fluent": "Fluent Emoji, Microsoft Corporation",
}
_PER_SHARD = 1000


def _strip(pixels: NDArray[np.uint8]) -> bytes:
    """Pictures (K, 64, 64, 3) beside each other as lossless WebP."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(np.concatenate(list(pixels), axis=1))
    picture.save(buffer, format="WEBP", lossless=True, quality=75, method=4)  # method 6: 2 % smaller, 30 times the work
    return buffer.getvalue()


def _groups(pictures: Pictures) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A sample an emoji and style: what its tones share is written once."""
    splits = split_of(pictures.scenes)

    def emoji(index: int) -> tuple[str, str, str, str]:
        scene = pictures.scenes[index]
        return scene.style, scene.label, scene.hair, scene.gender

    order = sorted(range(len(pictures)), key=lambda i: (emoji(i), pictures.scenes[i].hexcode))
    for number, (_, members) in enumerate(itertools.groupby(order, emoji)):
        indices = list(members)
        scenes = [pictures.scenes[i] for i in indices]
        record: dict[str, Any] = {k: v for k, v in asdict(scenes[0]).items() if k not in ("tone", "hexcode", "file")}
        strip = _strip(pictures.pixels[indices])
        record |= {
            "license": LICENSES[scenes[0].style],
            "attribution": ATTRIBUTIONS[scenes[0].style],
            "captions": captions_of(scenes[0], 3),
            "package": scenes[0].file.partition(":")[0],
            "pictures": [
                {"tone": scene.tone, "hexcode": scene.hexcode, "file": scene.file.partition(":")[2], "split": splits[i]}
                for i, scene in zip(indices, scenes, strict=True)
            ],
            "sha256": hashlib.sha256(strip).hexdigest(),
        }
        data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        yield f"{number:06d}", {"webp": strip, "json": data}


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
    for path in find_shards(root, "pictures"):
        with tarfile.open(str(path)) as shard:
            members = {member.name: member for member in shard}
            for name in sorted(name for name in members if name.endswith(".json")):
                data = [shard.extractfile(members[n]) for n in (name, name.removesuffix("json") + "webp")]
                record, strip = (file.read() if file else b"" for file in data)
                found = json.loads(record)
                if hashlib.sha256(strip).hexdigest() != found["sha256"]:
                    raise UserError(f"{path} is damaged: the picture of {name} is not the one that was written")
                shared = {
                    key: found[key] for key in ("concept", "style", "hair", "gender", "label", "group", "subgroup")
                }
                wide = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
                for place, row in enumerate(found["pictures"]):
                    more = {"tone": row["tone"], "hexcode": row["hexcode"], "file": f"{found['package']}:{row['file']}"}
                    scenes.append(Scene(**shared, **more, keywords=tuple(found["keywords"])))
                    pixels.append(wide[:, place * SIZE : (place + 1) * SIZE])
    return Pictures(tuple(scenes), np.stack(pixels))
