"""What conversations of the emoji world are about, and in which words: scenes, things that have no picture, wordings.

Every text of a user belongs to one split by its hash, so no wording of a test conversation occurs in training; so does
every thing that has no picture here.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from m2chat.schema import Picture
from m2chat.worlds.emoji.builder import Builder
from m2chat.worlds.emoji.captions import caption_of
from m2chat.worlds.emoji.phrases import as_typed, bare, descriptions, known_words, phrases
from m2chat.worlds.emoji.scenes import Pictures, Scene, core_concepts, share, split_of

Split = Literal["train", "val", "test"]
_TEST, _VAL = 0.08, 0.04
"""Shares of the wordings that are kept for tests and for validation."""
TRIES = 1000
"""Texts and conversations that may be begun in vain."""
_FEW = 8
"""Concepts that may share a keyword by which one of them is asked for."""
_CORE = 3.0
"""How much oftener a core concept is talked about than another."""


def split_of_words(text: str) -> Split:
    """The split to which a user's wording belongs; letters and digits alone decide."""
    place = share("words/" + re.sub(r"[^a-z0-9]+", "", text.lower()))
    return "test" if place < _TEST else "val" if place < _TEST + _VAL else "train"


def filled(words: str, phrase: str, **more: str) -> str:
    """A phrase in its place: ``{np}``, or ``{Np}`` at the beginning of a sentence."""
    return words.format(np=phrase, Np=phrase[:1].upper() + phrase[1:], **more)


@dataclass
class Subjects:
    """What the conversations of one split are about.

    Args:
        split: ``train``, ``val`` or ``test``.
        seed: Makes the stream of samples reproducible.
        pictures: The world; training draws from what is not held out, tests from everything.
    """

    split: Split
    seed: int
    pictures: Pictures
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}/{self.split}")
        splits = split_of(self.pictures.scenes)
        self._place = {
            self._key(scene): index
            for index, scene in enumerate(self.pictures.scenes)
            if splits[index] == "train" or self.split == "test"
        }
        self._of_concept: dict[str, list[Scene]] = {}
        self._of_subgroup: dict[tuple[str, str], list[Scene]] = {}
        for index in self._place.values():
            scene = self.pictures.scenes[index]
            self._of_concept.setdefault(scene.concept, []).append(scene)
            if scene.is_plain:
                self._of_subgroup.setdefault((scene.subgroup, scene.style), []).append(scene)
        concepts = {scene.concept: scene for scene in self.pictures.scenes}.values()
        self._known_by = Counter(word.lower() for scene in concepts for word in scene.keywords)
        self._texts = {
            how: [
                (concept, text)
                for concept, known in descriptions().items()
                for text in getattr(known, how)
                if concept in self._of_concept and split_of_words(text) == self.split
            ]
            for how in ("descriptions", "remarks")
        }
        core = set(core_concepts())
        self._concepts = list(self._of_concept)
        self._weights = [_CORE if concept in core else 1.0 for concept in self._concepts]
        known = known_words(self.pictures.scenes)
        self.unknown = [
            noun for noun in phrases()["unknown"] if split_of_words(noun) == self.split and bare(noun) not in known
        ]
        """Things of this split that no picture, name or keyword of the world knows."""

    @staticmethod
    def _key(scene: Scene) -> tuple[str, ...]:
        return tuple(scene.attributes.values())

    def builder(self) -> Builder:
        """An empty conversation."""
        return Builder(self._pixels)

    def _pixels(self, scene: Scene) -> Picture:
        pixels: Picture = self.pictures.pixels[self._place[self._key(scene)]]
        return pixels

    def there(self, scene: Scene) -> Scene | None:
        """The scene with these attributes, if there is a picture of it that may be shown."""
        index = self._place.get(self._key(scene))
        return None if index is None else self.pictures.scenes[index]

    def scene(self, concept: str | None = None, style: str | None = None, plain: float = 0.8) -> Scene | None:
        """A scene: the concept first, so that one with many skin tones is no more frequent; None if there is none."""
        concept = concept or self.rng.choices(self._concepts, self._weights)[0]
        scenes = [s for s in self._of_concept.get(concept, ()) if style is None or s.style == style]
        if self.rng.random() < plain:
            scenes = [s for s in scenes if s.is_plain] or scenes
        return self.rng.choice(scenes) if scenes else None

    def described(self, how: Literal["descriptions", "remarks"]) -> tuple[Scene, str]:
        """A scene without attributes, and a description or a remark of the split's that asks for it.

        Raises:
            LookupError: If there is none.
        """
        concept, text = self.rng.choice(self._texts[how])
        scene = self.scene(concept, plain=1.0)
        if scene is None or not scene.is_plain:
            raise LookupError
        return scene, text

    def other_name(self, scene: Scene) -> str | None:
        """Another name of the scene's concept, of the split's; None if there is none."""
        known = descriptions().get(scene.concept)
        names = [name for name in known.names if split_of_words(name) == self.split] if known else []
        return self.rng.choice(names) if names else None

    def keyword(self, scene: Scene) -> str | None:
        """A keyword by which people may ask for the scene, as few others have it; None if there is none."""
        label = set(re.findall(r"\w+", f"{scene.label} {scene.concept}".lower()))
        words = [word.lower() for word in scene.keywords if self._known_by[word.lower()] <= _FEW]
        apart = [word for word in words if word.isalpha() and word not in label]
        return self.rng.choice(apart) if apart else None

    def plain(self) -> Scene:
        """A scene without attributes, of a concept that has one."""
        while (scene := self.scene(plain=1.0)) is None or not scene.is_plain:
            pass
        return scene

    def typed(self, make: Callable[[], str]) -> str:
        """A text of the user, of the split's wordings.

        Raises:
            LookupError: If this text has no wording in the split.
        """
        for _ in range(TRIES):
            if split_of_words(text := as_typed(make(), self.rng)) == self.split:
                return text
        raise LookupError

    def one(self, *texts: str) -> str:
        """One of some texts."""
        return self.rng.choice(texts)

    def words(self, name: str, **fields: str) -> str:
        """One of the wordings of a name in ``phrases.yaml``, with its places filled."""
        return self.one(*phrases()[name]).format(**fields)

    def answer(self, name: str, phrase: str) -> str:
        """What the assistant says of a thing; without a verb where that would have to agree with a plural."""
        answers = [text for text in phrases()[name] if " is " not in text or phrase.startswith(("a ", "an ", "the "))]
        return filled(self.one(*answers), phrase)

    def caption(self, scene: Scene, omit: Sequence[str] = ()) -> str:
        """The exact caption, without what is left to the context picture."""
        return caption_of(replace(scene, tone="") if "tone" in omit else scene, style="style" not in omit)
