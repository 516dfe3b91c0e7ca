from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from m2chat.schema import Sample
from m2chat.text.view import replies_of, stands_alone, view_of
from m2chat.worlds.shapes.captions import MOODS, parse_caption
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.judge import judge
from m2chat.worlds.shapes.phrases import STORIES
from m2chat.worlds.shapes.recipe.corpus import lesson
from m2chat.worlds.shapes.recipe.requests import request
from m2chat.worlds.shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, Split, held_out_keys, scenes_of_split

KINDS = ("instruct", "edit", "dialogue", "mixed", "story")
COUNT = 300


def samples(name: str, split: Split, count: int = COUNT) -> list[Sample]:
    maker = ConversationMaker(split, 0)
    return [getattr(maker, name)().sample("dialogue", name, index) for index in range(count)]


@pytest.fixture(scope="module")
def train() -> dict[str, list[Sample]]:
    return {kind: samples(kind, "train") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_training_never_shows_a_held_out_scene(train: dict[str, list[Sample]], kind: str) -> None:
    shown = [Scene.from_attributes(own) for sample in train[kind] for own in sample.meta["scenes"]]
    assert len(shown) >= COUNT and not {scene.key for scene in shown} & held_out_keys()
    # And the pictures show what the record says.
    pictures = np.stack([image.pixels for sample in train[kind][:40] for image in sample.images])
    assert [verdict.scene for verdict in judge(pictures)] == shown[: len(pictures)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_replies_draw_held_out_scenes(kind: str, split: Split) -> None:
    own = {scene.key for objects in (1, 2) for scene in scenes_of_split(split, objects)}
    for sample in samples(kind, split, 40):
        drawn = [
            k
            for turn in replies_of(sample)
            for k in sample.turns[turn].pictures
            if kind == "story" or stands_alone(sample, turn)
        ]
        keys = [Scene.from_attributes(sample.meta["scenes"][k]).key for k in drawn]
        if kind == "story":  # frames follow from each other: not all can be of one split
            assert set(keys) & held_out_keys()
        else:
            assert keys and set(keys) <= own


def test_a_third_of_the_replies_in_dialogues_is_text_alone(train: dict[str, list[Sample]]) -> None:
    replies = [sample.turns[k] for sample in train["dialogue"] for k in replies_of(sample)]
    assert np.mean([not reply.pictures for reply in replies]) == pytest.approx(1 / 3, abs=0.02)
    assert all(reply.text for reply in replies)


def test_mixed_dialogues_have_edits_and_stories(train: dict[str, list[Sample]]) -> None:
    said = [" | ".join(turn.text for turn in sample.turns if turn.role == "user") for sample in train["mixed"]]
    edits = re.compile(r"turn it into|make it|move it|background behind|make the|paint it|more\b")
    stories = [any(opener in text for _, opener, _ in STORIES) for text in said]
    assert all(story or edits.search(text) for text, story in zip(said, stories, strict=True))
    assert COUNT / 3 < sum(stories) < COUNT / 2


def test_a_change_tells_what_the_picture_before_told(train: dict[str, list[Sample]]) -> None:
    for sample in train["edit"]:
        told = [parse_caption(image.caption).keys() for image in sample.images]
        assert all(len(after - before) <= 1 and before <= after for before, after in itertools.pairwise(told))


@pytest.mark.parametrize("kind", ["edit", "dialogue"])
def test_half_of_the_pictures_depend_on_the_context_picture(train: dict[str, list[Sample]], kind: str) -> None:
    hidden = total = 0
    for sample in train[kind]:
        for turn in [turn for turn in replies_of(sample) if stands_alone(sample, turn)]:
            total += bool(sample.turns[turn].pictures)
            hidden += str(turn) in sample.meta["omitted"]
    assert 0.4 < hidden / total < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_omitted_is_seen_and_nowhere_told(train: dict[str, list[Sample]], kind: str) -> None:
    for sample in train[kind]:
        for turn, names in sample.meta["omitted"].items():
            view = view_of(sample, int(turn))
            (target,) = view.targets
            assert target is not None and view.context is not None and names
            before, after = sample.meta["scenes"][view.context], sample.meta["scenes"][target]
            texts = [view.request.instruction, *view.request.history, view.reply[0].answer, view.reply[0].caption or ""]
            told = {name for text in texts for name in parse_caption(text)}
            assert not told & set(names)
            assert all(before[name] == after[name] for name in names)


def test_captions_are_true(train: dict[str, list[Sample]]) -> None:
    for kind in KINDS:
        for sample in train[kind]:
            for image, own in zip(sample.images, sample.meta["scenes"], strict=True):
                assert image.caption and parse_caption(image.caption).items() <= own.items()


def test_answers_differ_from_captions(train: dict[str, list[Sample]]) -> None:
    for kind in ("edit", "dialogue", "mixed", "story"):
        for sample in train[kind]:
            for segment in (s for k in replies_of(sample) for s in view_of(sample, k).reply):
                assert segment.answer and segment.answer != segment.caption
    assert all(view_of(sample, 1).reply[0].answer == "" for sample in train["instruct"])


_VALUE = re.compile(rf"\b(an? )?({'|'.join((*SHAPES, *COLOURS, *SIZES, *POSITIONS))})\b")


def template(text: str) -> str:
    return _VALUE.sub("*", text)


def test_answers_of_stage_2_do_not_occur_in_pretraining(train: dict[str, list[Sample]]) -> None:
    talks = [sample for kind in KINDS for split in get_args(Split) for sample in samples(kind, split, 100)]
    talks += [sample for kind in KINDS for sample in train[kind]]
    answers = {s.answer for sample in talks for k in replies_of(sample) for s in view_of(sample, k).reply if s.answer}
    rng = random.Random(0)
    pool = scenes_of_split("train", 1) + scenes_of_split("train", 2)
    learned = {lesson(rng.choice(pool), rng).answer for _ in range(4000)}
    maker = ConversationMaker("train", 3)
    learned |= {request(maker).answer for _ in range(1500)}
    assert len(answers) > 80 and len(learned) > 2500
    assert not {template(text) for text in answers} & {template(text) for text in learned}
    joined = "\n".join(learned)
    assert not any(answer in joined for answer in answers)


def test_pretraining_shows_no_held_out_scene() -> None:
    rng = random.Random(1)
    pool = scenes_of_split("train", 1)
    for _ in range(5000):
        one = lesson(rng.choice(pool), rng)
        assert one.scene is None or one.scene.key not in held_out_keys()
        told = parse_caption(one.answer)
        if len(told) == 5:
            assert Scene.from_attributes(told).key not in held_out_keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_conversations(kind: str) -> None:
    first, again = samples(kind, "val", 3), samples(kind, "val", 3)
    assert [(s.id, s.turns, s.meta) for s in first] == [(s.id, s.turns, s.meta) for s in again]
    assert all(np.array_equal(a.images[0].pixels, b.images[0].pixels) for a, b in zip(first, again, strict=True))
    other = ConversationMaker("val", 1)
    assert [getattr(other, kind)().sample(kind, kind, i).turns for i in range(3)] != [s.turns for s in first]


def test_small_talk_stands_alone_and_behind_pictures() -> None:
    maker = ConversationMaker("train", 0)
    talks = [maker.small_talk().sample("dialogue", "smalltalk", k) for k in range(90)]
    drawn = [[bool(sample.turns[k].pictures) for k in replies_of(sample)] for sample in talks]
    assert sorted({tuple(own) for own in drawn}) == [(False,), (True, False, False)]
    assert 20 <= sum(len(own) == 1 for own in drawn) <= 40


def test_kinds_of_stories_and_moods_are_not_rare() -> None:
    maker = ConversationMaker("train", 0)
    openers = Counter(maker.story().turns[0].text.split(" a ")[0] for _ in range(200))
    assert len(openers) == len(STORIES) and min(openers.values()) > 30
    said = [maker.wish().turns[0].text for _ in range(300)]
    moods = Counter(mood for text in said for mood in MOODS if f"something {mood}" in text)
    assert set(moods) == set(MOODS) and 70 <= sum(moods.values()) <= 130
