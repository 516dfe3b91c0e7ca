from __future__ import annotations

import numpy as np
import pytest

from m2chat.worlds.shapes.scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene, Shape, all_scenes, coverage, render

SCENE = Scene(Shape("square", "red"), "blue", None, "large", "left")


def test_without_a_generator_a_scene_has_one_picture() -> None:
    first, second = render(SCENE), render(SCENE)
    assert first.dtype == np.uint8 and first.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.array_equal(first, second)


def test_a_generator_moves_objects_a_little() -> None:
    pictures = [render(SCENE, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(pictures[0], pictures[1])
    moved = np.abs(pictures[0].astype(int) - pictures[2]).max(2)
    assert 0 < (moved > 0).mean() < 0.2


def test_colours_stand_where_they_should() -> None:
    picture = render(SCENE)
    row = IMAGE_SIZE // 2
    assert tuple(picture[row, row - 6]) == COLOURS["red"] and tuple(picture[0, -1]) == COLOURS["blue"]
    pair = render(Scene(Shape("square", "red"), "blue", Shape("circle", "pink")))
    assert tuple(pair[row, row - 8]) == COLOURS["red"] and tuple(pair[row, row + 7]) == COLOURS["pink"]


def test_different_scenes_look_different() -> None:
    scenes = (*all_scenes(1), *all_scenes(2)[::4])
    assert len({render(scene).tobytes() for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_stay_within_their_radius_and_have_soft_edges(shape: str) -> None:
    alpha = coverage(shape, 8.5, (0.0, 0.0))
    axis = np.arange(IMAGE_SIZE) + 0.5 - IMAGE_SIZE / 2
    outside = np.maximum(*map(np.abs, np.meshgrid(axis, axis))) > 8.5 + 0.5
    assert alpha.max() == 1 and not alpha[outside].any()
    assert ((alpha > 0) & (alpha < 1)).any()


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        coverage("star", 5.0, (0.0, 0.0))
