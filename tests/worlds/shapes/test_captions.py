from __future__ import annotations

import itertools
import random

from m2chat.worlds.shapes.captions import alt_text, caption_of, paraphrases, parse_caption, random_caption
from m2chat.worlds.shapes.scenes import Scene, all_scenes

SCENES = (*all_scenes(1), *all_scenes(2)[::3])


def test_exact_wording() -> None:
    single = {"shape": "circle", "colour": "orange", "size": "large", "position": "left", "background": "blue"}
    pair = {"shape": "ring", "colour": "red", "shape_2": "square", "colour_2": "pink", "background": "orange"}
    assert caption_of(Scene.from_attributes(single)) == "a large orange circle on the left on a blue background"
    assert caption_of(Scene.from_attributes(single), omit=("size", "background")) == "an orange circle on the left"
    assert caption_of(Scene.from_attributes(pair)) == "a red ring left of a pink square on an orange background"


def test_captions_parse_back() -> None:
    for scene in SCENES:
        assert parse_caption(caption_of(scene)) == scene.attributes
        assert parse_caption(alt_text(scene)) == scene.attributes


def test_paraphrases_say_the_same_in_five_ways() -> None:
    for scene in SCENES[::5]:
        texts = paraphrases(scene)
        assert len(set(texts)) == 5
        assert all(parse_caption(text) == scene.attributes for text in texts)


def test_omitted_attributes_are_not_told() -> None:
    names = ("size", "position", "background")
    omits = [omit for count in range(4) for omit in itertools.combinations(names, count)]
    for scene in SCENES[::7]:
        for omit in omits:
            told = {name: value for name, value in scene.attributes.items() if name not in omit}
            assert parse_caption(caption_of(scene, omit=omit)) == told


def test_random_captions_are_true_and_sometimes_partial() -> None:
    rng = random.Random(0)
    partial = 0
    for _ in range(1000):
        scene = rng.choice(SCENES)
        told = parse_caption(random_caption(scene, rng))
        assert told.items() <= scene.attributes.items()
        partial += len(told) < len(scene.attributes)
    assert 200 < partial < 300


def test_one_caption_one_scene() -> None:
    scenes = (*all_scenes(1), *all_scenes(2))
    assert len({caption_of(scene) for scene in scenes}) == len(scenes)
