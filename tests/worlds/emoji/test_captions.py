"""Captions in natural English."""

from __future__ import annotations

import random

import pytest

from m2chat.worlds.emoji.captions import CaptionReader, caption_of, captions_of, draw_caption, noun_phrase, phrases_of
from m2chat.worlds.emoji.scenes import STYLES, Pictures, Scene


@pytest.mark.parametrize(
    ("label", "subgroup", "phrase"),
    [
        ("red apple", "food-fruit", "a red apple"),
        ("octopus", "animal-marine", "an octopus"),
        ("unicorn", "animal-mammal", "a unicorn"),
        ("grapes", "food-fruit", "grapes"),
        ("bread", "food-prepared", "bread"),
        ("face with tears of joy", "face-smiling", "a face with tears of joy"),
        ("beating heart", "heart", "a beating heart"),
        ("two-thirty", "time", "a clock at two-thirty"),
        ("Leo", "zodiac", "the zodiac sign Leo"),
        ("bus", "transport-ground", "a bus"),
        ("hourglass done", "time", "an hourglass done"),
        ("face with open mouth", "face-concerned", "a face with an open mouth"),
        ("man in tuxedo", "person-role", "a man in a tuxedo"),
        ("umbrella on ground", "sky-weather", "an umbrella on the ground"),
        ("smiling face with heart-eyes", "face-affection", "a smiling face with heart-eyes"),
        ("woman lifting weights", "person-sport", "a woman lifting weights"),
        ("person kneeling: facing right", "person-activity", "a person kneeling facing right"),
        ("family: man, woman, boy, boy", "family", "a family of a man, a woman and two boys"),
        ("kiss: woman, woman", "family", "a kiss: two women"),
        ("woman: beard", "person", "a woman with a beard"),
        ("women wrestling", "person-sport", "women wrestling"),
        ("money with wings", "money", "money with wings"),
        ("no smoking", "warning", "a no smoking sign"),
        ("rhinoceros", "animal-mammal", "a rhinoceros"),
        ("ewe", "animal-mammal", "a ewe"),
        ("SOS button", "alphanum", "an SOS button"),
        ("locked", "lock", "a closed lock"),
    ],
)
def test_names_have_the_article_that_english_wants(label: str, subgroup: str, phrase: str) -> None:
    assert noun_phrase(Scene(label, "noto", label=label, subgroup=subgroup)) == phrase


def test_the_exact_caption_names_attributes_and_style() -> None:
    scene = Scene("person", "fluent", "dark", "red", "woman", "woman: red hair")
    assert caption_of(scene) == "a woman with red hair and dark skin in Fluent style"
    assert caption_of(scene, style=False) == "a woman with red hair and dark skin"


def test_a_tone_follows_what_somebody_is_with() -> None:
    scene = Scene("person with veil", "noto", "dark", "", "woman", "woman with veil")
    assert caption_of(scene, style=False).startswith("a woman with a veil")
    assert {phrase.replace("a woman with a veil", "") for phrase in phrases_of(scene) if phrase.startswith("a ")} == {
        " and dark skin",
        " and a dark skin tone",
        ", dark skin tone",
    }


def test_a_caption_says_truly_whether_it_names_the_style(world: Pictures) -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = rng.choice(world.scenes)
        caption = draw_caption(scene, rng)
        assert caption.names_style == any(name in caption.text for name in STYLES.values())


def test_every_caption_of_a_person_names_the_tone(world: Pictures) -> None:
    rng = random.Random(0)
    people = [scene for scene in world.scenes if scene.tone]
    assert all(scene.tone in draw_caption(scene, rng).text for scene in people for _ in range(20))


def test_captions_are_several_different_and_always_the_same(world: Pictures) -> None:
    for scene in world.scenes:
        captions = captions_of(scene, 4)
        assert len(captions) == len(set(captions)) == 4
        assert captions == captions_of(scene, 4)


def test_keywords_that_are_no_words_or_are_named_already_are_left_out() -> None:
    scene = Scene("kiss: man, man", "noto", label="kiss: man, man", keywords=("*", "man", "mwah", "two", "love"))
    rng = random.Random(0)
    texts = [draw_caption(scene, rng, style=False).text for _ in range(200)]
    assert any("mwah" in text for text in texts)
    assert not [text for text in texts if "*" in text or text.count("man") > 2 or text.count("two") > 1]


def test_captions_read_back_what_they_name(world: Pictures) -> None:
    """A caption names the concept and tone of its picture, and the style exactly if it says so; or keywords alone."""
    reader, rng, silent = CaptionReader(world.scenes), random.Random(0), 0
    for scene in world.scenes:
        for _ in range(20):
            caption = draw_caption(scene, rng)
            named = reader.read(caption.text)
            wanted = {k: v for k, v in scene.attributes.items() if k != "style" or caption.names_style}
            silent += not named
            assert named in (wanted, {}), caption.text
        assert reader.read(caption_of(scene)) == scene.attributes
    assert silent < 0.15 * 20 * len(world)
    assert reader.read("a zebra in Noto style") == {}
