from __future__ import annotations

from collections.abc import Callable

import numpy as np

from m2chat.evaluation.grid import GAP, comparison, conversation_table, grid
from m2chat.evaluation.targets import known_of, targets_of
from m2chat.schema import Prediction, Reply, Segment
from m2chat.worlds.shapes import WORLD
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import Scene, Shape, render

SCENE = Scene(Shape("circle", "red"), "blue", None, "large", "left")


def test_a_right_picture_is_right_in_every_way(make_prediction: Callable[..., Prediction]) -> None:
    caption = caption_of(SCENE, omit=["size"])
    prediction = make_prediction("x", render(SCENE), caption, scene=SCENE.attributes, omitted=["size"])
    judged = WORLD.judge(targets_of(prediction))
    assert (judged.all_right, judged.scene_right, judged.omitted_right) == ([True], [True], [True])
    assert judged.oracle == [False]  # the fixture's true picture is plain grey
    assert judged.attributes["colour"] == [True]


def test_a_wrong_omitted_attribute_is_no_fault_of_the_caption(make_prediction: Callable[..., Prediction]) -> None:
    caption = caption_of(SCENE, omit=["size"])
    drawn = render(SCENE.with_attribute("size", "small"))
    prediction = make_prediction("x", drawn, caption, scene=SCENE.attributes, omitted=["size"])
    judged = WORLD.judge(targets_of(prediction))
    assert (judged.all_right, judged.scene_right, judged.omitted_right) == ([True], [False], [False])


def test_a_picture_that_was_not_drawn_is_left_out(make_prediction: Callable[..., Prediction]) -> None:
    judged = WORLD.judge(targets_of(make_prediction("x", None, caption_of(SCENE))))
    assert judged.all_right == []
    assert judged.oracle == [False]


def test_pictures_from_outside_the_micro_world_are_left_out() -> None:
    photo = np.zeros((40, 70, 3), np.uint8)
    reply = Reply((Segment("", "my cat on the sofa"), Segment("", caption_of(SCENE))), (photo, photo))
    generated = Reply(reply.segments, (render(SCENE), render(SCENE)))
    judged = WORLD.judge(targets_of(Prediction("x", "caption", "own", "", reply, generated)))
    assert (judged.all_right, judged.scene_right, judged.oracle) == ([True], [], [])


def test_each_of_several_pictures_has_its_own_scene() -> None:
    other = SCENE.with_attribute("colour", "green")
    segments = (Segment("first", caption_of(SCENE)), Segment("and then"), Segment("last", caption_of(other)))
    reply = Reply(segments, (render(SCENE), None, render(other)))
    meta = {"scene": [SCENE.attributes, other.attributes], "omitted": [[], ["colour"]]}
    targets = targets_of(Prediction("x", "story", "test", "", reply, reply, None, meta))
    judged = WORLD.judge(targets)
    assert judged.scene_right == [True, True]
    assert judged.omitted_right == [True]


def test_what_is_known_as_this_and_as_earlier_versions_record_it() -> None:
    other = SCENE.with_attribute("colour", "green")
    of_sample = {"scenes": [SCENE.attributes, other.attributes], "omitted": {"3": ["size"]}}
    expected = [(other.attributes, ("size",))]
    assert known_of({**of_sample, "turn": 3, "targets": [1]}, 1) == expected
    earlier = {"scenes": of_sample["scenes"], "scene": [other.attributes], "omitted": [["size"]], "reply": 1}
    assert known_of(earlier, 1) == expected
    assert known_of({**of_sample, "reply": 0}, 0) == known_of({**of_sample, "turn": 1, "targets": []}, 0) == []
    assert known_of({}, 2) == [(None, ()), (None, ())]


def test_the_grid_has_a_row_for_each_picture_and_keeps_pixels(make_prediction: Callable[..., Prediction]) -> None:
    drawn = np.zeros((2, 2, 3), np.uint8)
    drawn[0, 0] = (255, 0, 0)
    picture = comparison([make_prediction("x", drawn), make_prediction("y", None)], size=16)
    assert picture is not None
    assert picture.shape == (2 * (16 + GAP) + GAP, 3 * (16 + GAP) + GAP, 3)
    column = GAP + 16 + GAP
    assert (picture[GAP : GAP + 8, column : column + 8] == (255, 0, 0)).all()
    assert (picture[2 * GAP + 16 : 2 * GAP + 32, column : column + 16] == 200).all()
    assert comparison([]) is None


def test_the_grid_keeps_the_sides_of_pictures() -> None:
    tall = grid([[np.zeros((48, 24, 3), np.uint8)]], size=32)[GAP:-GAP, GAP:-GAP]
    assert (tall[:, 8:24] == 0).all() and (tall[:, :8] == 255).all() and (tall[:, 24:] == 255).all()
    wide = grid([[np.zeros((24, 48, 3), np.uint8)]], size=32)[GAP:-GAP, GAP:-GAP]
    assert np.array_equal(wide, tall.swapaxes(0, 1))


def test_words_cannot_break_the_table(make_prediction: Callable[..., Prediction]) -> None:
    line = conversation_table([make_prediction("x", None, answer="a | b\nc")]).splitlines()[2]
    assert "a \\| b c [no picture: a red circle]" in line
