from __future__ import annotations

import pytest

from m2chat.worlds.shapes.scenes import Scene, Shape, all_scenes, held_out_keys, scenes_of_split


def test_every_tuple_once_and_all_valid() -> None:
    singles, pairs = all_scenes(1), all_scenes(2)
    assert (len(singles), len(pairs)) == (3600, 12960)
    assert all(scene.is_valid for scene in (*singles, *pairs))
    assert len({scene.key for scene in (*singles, *pairs)}) == 3600 + 12960
    assert {len(scene.attributes) for scene in singles} == {len(scene.attributes) for scene in pairs} == {5}


@pytest.mark.parametrize("objects", [1, 2])
def test_splits_are_disjoint_and_complete(objects: int) -> None:
    parts = {split: {scene.key for scene in scenes_of_split(split, objects)} for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(all_scenes(objects)) == len(set().union(*parts.values()))
    assert len(parts["val"]) == len(parts["test"]) == 300
    assert not parts["train"] & held_out_keys()


def test_enough_tuples_are_held_out() -> None:
    assert len(held_out_keys()) == 1200
    # Every value of every attribute occurs there, or nobody could be asked about it.
    scenes = [scene for split in ("val", "test") for scene in scenes_of_split(split, 1)]
    seen = {(name, value) for scene in scenes for name, value in scene.attributes.items()}
    assert len(seen) == 4 + 10 + 2 + 5 + 10


def test_splits_do_not_depend_on_the_process() -> None:
    # Written down, because pretrained weights rest on them.
    first = [scenes_of_split("test", objects)[0].key for objects in (1, 2)]
    assert first == ["ring/green/-/-/large/middle/blue", "triangle/blue/square/black/-/-/green"]


def test_attributes_go_both_ways() -> None:
    for scene in (*all_scenes(1)[::97], *all_scenes(2)[::197]):
        assert Scene.from_attributes(scene.attributes) == scene


def test_changing_attributes() -> None:
    scene = Scene(Shape("circle", "red"), "blue", None, "small", "left")
    assert scene.with_attribute("background", "pink").attributes == {**scene.attributes, "background": "pink"}
    assert not scene.with_attribute("background", "red").is_valid
    with pytest.raises(ValueError, match="no attribute 'shape_2'"):
        scene.with_attribute("shape_2", "ring")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        scenes_of_split("dev", 1)  # type: ignore[arg-type]
