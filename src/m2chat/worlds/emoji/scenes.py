"""What the emoji world holds: concepts, styles, attributes, pictures, and which of them training never sees."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.files import whole_file

CACHE = Path(os.environ.get("M2CHAT_CACHE", "~/.cache/m2chat")).expanduser() / "pocket"
"""Folder of ``packages/`` and the pictures that were read from them."""
SIZE = 64
"""Height and width of a picture in pixels."""
MAX_ERROR = 90.0
"""Largest root-mean-square distance to the true picture, in grey levels of 255, at which the judge's verdict counts."""
Split = Literal["train", "pair", "combination"]
SPLITS: tuple[Split, ...] = ("train", "pair", "combination")
STYLES: dict[str, str] = {"noto": "Noto", "twemoji": "Twemoji", "fluent": "Fluent"}
"""Name of each set as captions write it."""
LICENSES: dict[str, str] = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent": "MIT"}
TONES = ("", "light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones; the empty one is the emoji's yellow."""
HAIRS = ("", "red", "curly", "white", "bald", "blond")
GENDERS = ("", "woman", "man", "girl", "boy")
PAIR_SHARE, COMBINATION_SHARE = 0.15, 0.06
"""Share of concepts of which one style is held out, and of attribute combinations held out in every style."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Args:
        concept: Name of the concept, without attributes: ``firefighter``.
        style: Key of `STYLES`.
        tone: One of `TONES`.
        hair: One of `HAIRS`.
        gender: One of `GENDERS`.
        label: CLDR's name of the emoji without its skin tone: ``woman firefighter``.
        keywords: CLDR's keywords.
        group: CLDR's group: ``people-body``.
        subgroup: CLDR's subgroup: ``person-role``.
        hexcode: Unicode code points.
        file: Package and member that the picture was read from.
    """

    concept: str
    style: str
    tone: str = ""
    hair: str = ""
    gender: str = ""
    label: str = ""
    keywords: tuple[str, ...] = ()
    group: str = ""
    subgroup: str = ""
    hexcode: str = ""
    file: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """Everything that the judge reads."""
        return {name: getattr(self, name) for name in ("concept", "style", "tone", "hair", "gender")}

    @property
    def combination(self) -> tuple[str, str, str, str]:
        """Concept and attributes, whatever the style."""
        return self.concept, self.tone, self.hair, self.gender

    @property
    def is_plain(self) -> bool:
        """Whether no attribute is set."""
        return not (self.tone or self.hair or self.gender)


@dataclass(frozen=True)
class Pictures:
    """Scenes and their pictures, in one order.

    Args:
        scenes: One for each picture.
        pixels: uint8, (N, 64, 64, 3), RGB on white.
    """

    scenes: tuple[Scene, ...]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scenes)

    def of(self, *splits: Split, styles: Iterable[str] = STYLES) -> Pictures:
        """The pictures of some splits and styles."""
        wanted, by_scene = set(styles), split_of(self.scenes)
        chosen = [i for i, scene in enumerate(self.scenes) if by_scene[i] in splits and scene.style in wanted]
        return self.take(chosen)

    def take(self, indices: Sequence[int]) -> Pictures:
        """The pictures of some indices, in their order."""
        return Pictures(tuple(self.scenes[i] for i in indices), self.pixels[np.asarray(indices, dtype=np.int64)])

    def find(self, concept: str, style: str) -> tuple[Scene, NDArray[np.uint8]]:
        """The first picture of a concept in a style.

        Raises:
            UserError: If there is none.
        """
        for scene, pixels in zip(self.scenes, self.pixels, strict=True):
            if (scene.concept, scene.style) == (concept, style):
                return scene, pixels
        raise UserError(f"{style}/{concept}: there is no such picture; styles are {', '.join(STYLES)}")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts, sorted."""
        return tuple(sorted({scene.concept for scene in self.scenes}))


def share(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def split_of(scenes: Sequence[Scene]) -> list[Split]:
    """The split of each scene of the whole world.

    A concept gives up at most one of its styles, and only if it has another, so that what it looks like can still be
    learned; a combination of attributes is given up in every style.
    """
    styles: dict[str, set[str]] = {}
    for scene in scenes:
        styles.setdefault(scene.concept, set()).add(scene.style)
    given_up: dict[str, str] = {}
    for concept, present in styles.items():
        if len(present) > 1 and share(f"pair/{concept}") < PAIR_SHARE:
            given_up[concept] = min(present, key=lambda style: share(f"style/{concept}/{style}"))
    return [_split(scene, given_up) for scene in scenes]


def _split(scene: Scene, given_up: dict[str, str]) -> Split:
    if given_up.get(scene.concept) == scene.style:
        return "pair"
    if not scene.is_plain and share("combination/" + "/".join(scene.combination)) < COMBINATION_SHARE:
        return "combination"
    return "train"


@cache
def core_concepts() -> tuple[str, ...]:
    """The 400 concepts that people speak of, fixed by group and name before anything was trained."""
    lines = files("m2chat.worlds.emoji").joinpath("core.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def save_pictures(path: Path, pictures: Pictures) -> None:
    """Writes all pictures into one uncompressed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scenes = np.frombuffer(json.dumps([asdict(scene) for scene in pictures.scenes]).encode(), dtype=np.uint8)
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, pixels=pictures.pixels, scenes=scenes)


def load_pictures(path: Path) -> Pictures:
    """Reads what `save_pictures` has written.

    Raises:
        UserError: If there is no such file.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}: `python -m m2chat.worlds.emoji pictures` builds it from its packages")
    with np.load(path, allow_pickle=False) as arrays:
        rows = json.loads(arrays["scenes"].tobytes())
        scenes = tuple(Scene(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)
        return Pictures(scenes, arrays["pixels"])
