from __future__ import annotations

import random

import numpy as np
import pytest

from m2chat.worlds.shapes.judge import MAX_ERROR, judge
from m2chat.worlds.shapes.scenes import Scene, Shape, all_scenes, render


def test_it_reads_true_pictures() -> None:
    rng = random.Random(0)
    scenes = [rng.choice(all_scenes(1 if rng.random() < 0.5 else 2)) for _ in range(1000)]
    noise = np.random.default_rng(0)
    verdicts = judge(np.stack([render(scene, noise) for scene in scenes]))
    right = [
        verdict.scene == scene and verdict.error <= MAX_ERROR for verdict, scene in zip(verdicts, scenes, strict=True)
    ]
    assert np.mean(right) >= 0.99


def test_it_bears_slight_noise() -> None:
    scenes = all_scenes(1)[::41] + all_scenes(2)[::101]
    noise = np.random.default_rng(0)
    pictures = np.stack([render(scene, noise) for scene in scenes]).astype(int)
    blurred = (pictures + noise.normal(0, 10, pictures.shape)).clip(0, 255).astype(np.uint8)
    right = [v.all_right(scene.attributes) for v, scene in zip(judge(blurred), scenes, strict=True)]
    assert np.mean(right) >= 0.98


def test_it_rejects_what_is_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    half = render(Scene(Shape("circle", "red"), "blue", None, "large", "middle"))
    half[16:] = render(Scene(Shape("ring", "green"), "white", None, "large", "middle"))[16:]
    for verdict in judge(np.concatenate([noise, half[None]])):
        assert verdict.error > MAX_ERROR
        assert not any(verdict.right(verdict.scene.attributes).values())
        assert not verdict.all_right({"background": verdict.scene.background})


def test_partial_wishes_and_surplus_objects() -> None:
    single = Scene(Shape("circle", "red"), "blue", None, "large", "middle")
    pair = Scene(Shape("circle", "red"), "blue", Shape("ring", "green"))
    one, two = judge(np.stack([render(single), render(pair)]))
    assert one.right({"colour": "red", "shape": "ring"}) == {"colour": True, "shape": False}
    assert one.all_right({"colour": "red"}) and not one.all_right(pair.attributes)
    assert two.all_right(pair.attributes)
    assert not two.all_right({"colour": "red"}), "nobody asked for a second object"


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 32, 32, 3\), not \(1, 16, 16, 3\)"):
        judge(np.zeros((1, 16, 16, 3), np.uint8))
