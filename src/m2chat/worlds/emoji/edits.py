"""What an instruction can change in a picture of the emoji world."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from m2chat.worlds.emoji.captions import caption_of
from m2chat.worlds.emoji.families import families, poses, roles
from m2chat.worlds.emoji.names import with_article
from m2chat.worlds.emoji.phrases import phrases
from m2chat.worlds.emoji.scenes import GENDERS, HAIRS, TONES, Scene

Find = Callable[[Scene], Scene | None]
"""The scene with a picture that has these attributes, if there is one."""


@dataclass(frozen=True)
class SceneChange:
    """A change of a picture.

    Args:
        after: What it shows afterwards.
        instructions: Wordings of the instruction.
        answers: Wordings of the answer.
    """

    after: Scene
    instructions: tuple[str, ...]
    answers: tuple[str, ...]


def named(scene: Scene) -> str:
    """The scene in words, without its style."""
    return caption_of(scene, style=False)


def change_in_family(before: Scene, find: Find, rng: random.Random) -> SceneChange | None:
    """Another member of a family that the scene belongs to, in the same style.

    Args:
        before: The scene as it is.
        find: Finds scenes that may be shown.
        rng: Source of the random choice.
    """
    fitting = [family for family in families() if before.concept in family.members.values()]
    if not fitting or not before.is_plain:
        return None
    family = rng.choice(fitting)
    word, concept = rng.choice([item for item in family.members.items() if item[1] != before.concept])
    after = find(replace(before, concept=concept))
    if after is None:
        return None
    fields = {"a": named(after) if word == concept else with_article(word), "noun": family.noun}
    instructions = tuple(text.format(word, **fields) for text in family.instruct)
    return SceneChange(after, instructions, tuple(text.format(word, **fields) for text in family.answers))


def change_of_person(before: Scene, find: Find, rng: random.Random) -> SceneChange | None:
    """A person with another skin, hair, gender, pose or profession, all else being equal.

    Args:
        before: The scene as it is.
        find: Finds scenes that may be shown.
        rng: Source of the random choice.
    """
    name = rng.choice(("tone", "tone", "hair", "gender", "concept"))
    alike: tuple[str, ...] = next((group for group in (poses(), roles()) if before.concept in group), ())
    values = {"tone": TONES, "hair": HAIRS, "gender": GENDERS, "concept": alike}[name]
    others = [value for value in values if value and value != before.attributes[name]]
    changes = [after for value in others if (after := find(replace(before, **{name: value})))]  # type: ignore[arg-type]
    if not changes:
        return None
    after = rng.choice(changes)
    phrase, value = named(after), after.attributes[name]
    wordings: list[str] = phrases()[f"change_{'gender' if name == 'concept' else name}"]
    thing = named(replace(after, tone="")) if name == "concept" else with_article(value)
    answers = tuple(text.format(np=phrase) for text in phrases()["person_answers"])
    return SceneChange(after, tuple(text.format(value, a=thing) for text in wordings), answers)
