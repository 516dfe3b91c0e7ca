"""What training never sees, and the core list."""

from __future__ import annotations

import pytest

from emoji_world import everything
from m2chat.errors import UserError
from m2chat.worlds.emoji.scenes import PAIR_SHARE, STYLES, TONES, Pictures, Scene, core_concepts, split_of


def many() -> list[Scene]:
    people = [Scene(f"worker {n}", style, tone) for n in range(40) for style in STYLES for tone in TONES]
    return people + [Scene(f"thing {n}", style) for n in range(400) for style in STYLES]


def test_a_concept_gives_up_one_style_at_most_and_never_its_only_one() -> None:
    scenes = [*many(), *(Scene(f"lonely {n}", "noto") for n in range(200))]
    held: dict[str, set[str]] = {}
    for scene, split in zip(scenes, split_of(scenes), strict=True):
        if split == "pair":
            held.setdefault(scene.concept, set()).add(scene.style)
    assert all(len(styles) == 1 for styles in held.values())
    assert not [concept for concept in held if concept.startswith("lonely")]
    assert 0.5 * PAIR_SHARE < len(held) / 440 < 1.5 * PAIR_SHARE
    assert {style for styles in held.values() for style in styles} == set(STYLES)


def test_a_combination_of_attributes_is_held_out_in_every_style_and_a_plain_one_never() -> None:
    scenes = many()
    splits = split_of(scenes)
    held = {scene.combination for scene, split in zip(scenes, splits, strict=True) if split == "combination"}
    assert held
    for scene, split in zip(scenes, splits, strict=True):
        assert not (scene.is_plain and split == "combination")
        assert scene.combination not in held or split != "train"


def test_the_split_does_not_depend_on_the_order() -> None:
    scenes = many()
    forth = dict(zip(scenes, split_of(scenes), strict=True))
    back = dict(zip(scenes[::-1], split_of(scenes[::-1]), strict=True))
    assert forth == back


def test_pictures_of_splits_are_apart_and_complete(world: Pictures) -> None:
    parts = [world.of("train"), world.of("pair"), world.of("combination")]
    assert sum(len(part) for part in parts) == len(world)
    assert set(world.of("train", styles=["noto"]).scenes) <= set(parts[0].scenes)


def test_the_core_list_has_400_concepts() -> None:
    core = core_concepts()
    assert len(core) == len(set(core)) == 400
    assert {"dog", "pizza", "red heart", "rainbow", "crying face", "guitar"} <= set(core)


def test_a_picture_that_is_not_there_is_named() -> None:
    world = everything()
    scene = world.scenes[0]
    assert world.find(scene.concept, scene.style)[0].concept == scene.concept
    with pytest.raises(UserError, match=r"noto/unheard-of: there is no such picture; styles are noto, twemoji, fluent"):
        world.find("unheard-of", "noto")
