from __future__ import annotations

import random

from m2chat.text.view import replies_of
from m2chat.worlds.shapes.captions import TOY_OF, caption_of, parse_caption
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.phrases import QUESTIONS, SMALL_TALK, STORIES, edit_words
from m2chat.worlds.shapes.recipe.metric_clip import idle_words, sentence_about
from m2chat.worlds.shapes.recipe.requests import ASK, base_reply, request, story_words, with_base_replies
from m2chat.worlds.shapes.scenes import Scene, held_out_keys, scenes_of_split


def test_only_who_asks_gets_a_caption() -> None:
    maker = ConversationMaker("train", 0)
    lessons = [request(maker) for _ in range(600)]
    asked = [lesson for lesson in lessons if ASK in lesson.request.history]
    talk = [lesson for lesson in lessons if ASK not in lesson.request.history]
    assert min(len(asked), len(talk)) > 250
    assert all(lesson.answer and parse_caption(lesson.answer) for lesson in asked)
    assert not any({"shape", "colour"} <= parse_caption(lesson.answer).keys() for lesson in talk)
    assert not any(lesson.scene and lesson.scene.key in held_out_keys() for lesson in lessons)


def test_no_reply_of_a_conversation_is_left() -> None:
    maker, rng = ConversationMaker("train", 1), random.Random(0)
    for name in ("dialogue", "mixed", "edit", "story", "instruct"):
        for number in range(50):
            sample = getattr(maker, name)().sample("dialogue", name, number)
            changed = with_base_replies(sample, rng)
            for turn in replies_of(sample):
                before, after = sample.turns[turn], changed.turns[turn]
                assert after.pictures == before.pictures and after.text and after.text != before.text


def test_base_reply_answer_what_was_said() -> None:
    scene, rng = scenes_of_split("train", 1)[0], random.Random(0)
    for name, question, _ in QUESTIONS:
        assert scene.attributes[name] in base_reply(question, scene, rng)
    for said, reply in SMALL_TALK:
        assert base_reply(said, None, rng) not in ("", reply)
    assert "ball" in base_reply("now a ball like the sea in its place", scene, rng)


def test_parts_of_a_story_name_what_changes_and_no_sentence_of_it() -> None:
    maker, rng = ConversationMaker("train", 2), random.Random(0)
    plots = {opener: (name, frames) for name, opener, frames in STORIES}
    seen = set()
    for number in range(40):
        sample = maker.story().sample("story", "story", number)
        (opener,) = (own for own in plots if sample.turns[0].text.startswith(own))
        name, frames = plots[opener]
        for turn, (value, words) in zip(replies_of(sample), frames, strict=True):
            told = story_words(sample, turn, rng)
            assert name in told and value in told and told != words
        seen.add(opener)
    assert seen == set(plots)


def test_base_reply_of_an_edit_tell_what_changes() -> None:
    before, rng = scenes_of_split("train", 1)[0], random.Random(0)
    for name, value in (("size", "small"), ("position", "bottom"), ("background", "pink")):
        after = before.with_attribute(name, value)
        if after != before:
            told = base_reply(edit_words(name, after, rng)[0], before, rng, after)
            assert name in told and value in told


def test_sentences_of_the_metric_are_true() -> None:
    rng = random.Random(0)
    for scene in (*scenes_of_split("train", 1)[:200], *scenes_of_split("train", 2)[:200]):
        words = set(sentence_about(scene, rng).split())
        told = parse_caption(caption_of(scene)).values()
        others = {word for one in scenes_of_split("train", 1)[:50] for word in one.attributes.values()} - set(told)
        if scene.second is None:
            assert not words & (others - {scene.size, scene.position})
            assert not words & ({*TOY_OF.values()} - {TOY_OF[scene.first.shape]})
    assert not {"red", "circle", "ball", "warm"} & set(idle_words())


def test_every_kind_of_scene_has_sentences() -> None:
    assert sentence_about(Scene.from_attributes(scenes_of_split("val", 2)[0].attributes), random.Random(1))
