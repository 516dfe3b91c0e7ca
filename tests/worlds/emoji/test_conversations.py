"""Conversations of the emoji world: their words, their pictures, and what no training conversation shows."""

from __future__ import annotations

import json
import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from emoji_world import everything
from m2chat.errors import UserError
from m2chat.schema import Sample
from m2chat.worlds.emoji.builder import HIDDEN, named_in
from m2chat.worlds.emoji.conversations import DATA_SETS, ConversationMaker
from m2chat.worlds.emoji.families import stories
from m2chat.worlds.emoji.phrases import bare, descriptions, known_words, phrases
from m2chat.worlds.emoji.pictures import read_scenes
from m2chat.worlds.emoji.scenes import Pictures, Scene, split_of
from m2chat.worlds.emoji.subjects import split_of_words

PICTURES = Path(__file__).parents[3] / "data" / "pocket" / "pictures"


@cache
def samples(split: str, name: str, count: int = 60) -> list[Sample]:
    maker = ConversationMaker(split, 0, everything())  # type: ignore[arg-type]
    return [maker.make(name, number) for number in range(count)]


def scenes_of(sample: Sample) -> list[dict[str, str]]:
    return list(sample.meta["scenes"])


def said(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns if turn.role == "user"]


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set(name: str) -> None:
    made = samples("train", name)
    again = ConversationMaker("train", 0, everything()).make(name, 0)
    assert [turn.parts for turn in again.turns] == [turn.parts for turn in made[0].turns]
    kinds = {sample.kind for sample in made}
    assert kinds == {name if name in ("instruct", "edit", "story") else "dialogue"}
    for sample in made:
        assert sample.turns[0].role == "user" and all(text.strip() for text in said(sample))
        assert "{" not in " ".join(turn.text for turn in sample.turns)
        drawn = [turn for turn in sample.turns if turn.role == "assistant" and turn.pictures]
        assert all(sample.images[index].caption for turn in sample.turns for index in turn.pictures)
        assert len(sample.meta["scenes"]) == len(sample.images)
        if name in ("ask", "unknown"):
            assert not drawn
        if name == "story":
            assert len(drawn) == 4 and len({scene["style"] for scene in sample.meta["scenes"]}) == 1
    assert len({text for sample in made for text in said(sample)}) > 25


def test_no_wording_of_a_user_is_in_two_splits() -> None:
    texts = {
        split: {text for name in DATA_SETS for sample in samples(split, name, 12) for text in said(sample)}
        for split in ("train", "val", "test")
    }
    for split, found in texts.items():
        assert len(found) > 100 and {split_of_words(text) for text in found} == {split}
    assert split_of_words("Draw a cat!") == split_of_words("draw a cat")


def test_half_of_the_edits_leave_style_and_skin_to_the_picture() -> None:
    for name in ("edit", "story", "similar"):
        made = samples("train", name, 200)
        assert 0.3 < sum(bool(sample.meta["omitted"]) for sample in made) / len(made) < 0.7, name
        for sample in made:
            for turn, hidden in sample.meta["omitted"].items():
                (index,) = sample.turns[int(turn)].pictures
                before, after = sample.meta["scenes"][index - 1 : index + 1]
                texts = [t.text for t in sample.turns[: int(turn)]] + [i.caption for i in sample.images[: index + 1]]
                for attribute in hidden:
                    assert attribute in HIDDEN and before[attribute] == after[attribute] != ""
                    assert all(attribute not in named_in(text) for text in texts)
                full = named_in(sample.images[index].full_caption)
                assert full == {name: after[name] for name in HIDDEN if after[name]}, "the target of L_align"


def test_a_full_caption_stands_only_where_the_picture_before_tells_more() -> None:
    for name in DATA_SETS:
        for sample in samples("train", name):
            for index, image in enumerate(sample.images):
                if image.full_caption:
                    assert image.full_caption.startswith(image.caption.split(" with a ")[0])
                    more = named_in(image.full_caption).items() - named_in(image.caption).items()
                    assert more <= sample.meta["scenes"][index - 1].items() & sample.meta["scenes"][index].items()


def test_an_edit_changes_one_thing() -> None:
    changed = set()
    for sample in samples("train", "edit", 300):
        scenes = sample.meta["scenes"]
        for before, after in pairwise(scenes):
            names = [name for name in before if before[name] != after[name]]
            assert len(names) == 1
            changed.add(names[0])
    assert {"concept", "tone", "gender"} <= changed


def test_training_shows_nothing_that_is_held_out() -> None:
    world = everything()
    splits = dict(zip((json.dumps(scene.attributes) for scene in world.scenes), split_of(world.scenes), strict=True))
    shown = {
        split: {
            splits[json.dumps(scene)] for name in DATA_SETS for s in samples(split, name, 90) for scene in scenes_of(s)
        }
        for split in ("train", "test")
    }
    assert shown == {"train": {"train"}, "test": {"train", "pair", "combination"}}


def test_what_has_no_picture_is_asked_for_in_one_split_alone() -> None:
    nouns: list[str] = phrases()["unknown"]
    assert len(nouns) == len({bare(noun) for noun in nouns}) > 600
    of = {split: ConversationMaker(split, 0, everything()).unknown for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert sorted(noun for some in of.values() for noun in some) == sorted(nouns)
    assert all(len(some) > 20 for some in of.values())
    for split, some in of.items():
        for sample in samples(split, "unknown"):
            text = sample.turns[1].text
            assert any(noun in text or text.startswith(noun[:1].upper() + noun[1:]) for noun in some), text


def test_what_a_world_knows_by_any_name_is_never_refused() -> None:
    scenes = [
        Scene("a lighthouse", "noto", label="tower"),
        Scene("sea", "noto", label="Kayaks", keywords=("waves", "Yam")),
    ]
    world = everything()
    more = Pictures((*world.scenes, *scenes), np.concatenate([world.pixels, world.pixels[:2]]))
    makers = [ConversationMaker(split, 0, more) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    left = {noun for maker in makers for noun in maker.unknown}
    assert set(phrases()["unknown"]) - left == {"lighthouse", "kayak", "yam"}


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the shipped pictures are not here")
def test_the_shipped_world_knows_nothing_of_the_list() -> None:
    assert not {bare(noun) for noun in phrases()["unknown"]} & known_words(read_scenes(PICTURES))


def test_things_are_asked_for_by_what_they_are_and_by_other_names() -> None:
    for split in ("train", "test"):
        steps = {step: list[tuple[Sample, int]]() for step in ("described", "occasion", "wish")}
        for sample in (*samples(split, "wish", 200), *samples(split, "instruct", 200)):
            for turn, step in sample.meta["steps"].items():
                steps.get(step, []).append((sample, int(turn)))
        assert len(steps["described"]) > 60 and len(steps["occasion"]) > 15
        for sample, turn in (*steps["described"], *steps["occasion"]):
            (index,) = sample.turns[turn].pictures
            known = descriptions()[sample.meta["scenes"][index]["concept"]]
            texts = {split_of_words(text) for text in (*known.names, *known.descriptions, *known.remarks)}
            assert split in texts and sample.images[index].caption and str(turn) not in sample.meta["keywords"]
        for sample, turn in steps["wish"]:
            assert sample.meta["keywords"][str(turn)]


def test_the_style_is_said_where_a_thing_goes_by_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2chat.worlds.emoji.subjects.as_typed", lambda text, rng: text)  # misspelt styles are not read
    maker = ConversationMaker("train", 0, everything())
    for sample in (maker.make("instruct", number) for number in range(200)):
        assert named_in(said(sample)[0]) == named_in(sample.images[-1].caption), said(sample)


@pytest.mark.skipif(not PICTURES.is_dir(), reason="the shipped pictures are not here")
def test_descriptions_leave_the_name_out() -> None:
    scenes = {scene.concept: scene for scene in read_scenes(PICTURES)}
    labels = {bare(scene.label) for scene in scenes.values()}
    texts = [text for known in descriptions().values() for text in (*known.names, *known.descriptions, *known.remarks)]
    assert descriptions().keys() <= scenes.keys() and len(texts) == len({text.lower() for text in texts}) > 7000
    for concept, known in descriptions().items():
        assert not labels & {bare(name) for name in known.names}, concept
        assert not any(f" {bare(scenes[concept].label)} " in f" {bare(text)} " for text in known.descriptions), concept


def test_words_of_the_lists() -> None:
    names = [story.openers for story in stories()]
    assert len({text for texts in names for text in texts}) == sum(map(len, names))
    assert all(len(story.frames) == 4 and all(words for _, words in story.frames) for story in stories())
    free = os.environ.get("M2CHAT_FIXTURES")
    if free and (path := Path(free).parent / "pocket_prompts.jsonl").is_file():  # what people say is never learned
        tests = {json.loads(line)["say"].lower() for line in path.read_text(encoding="utf-8").splitlines()}
        assert not tests & {text.lower() for name in DATA_SETS for s in samples("train", name) for text in said(s)}
        assert not tests & {
            text.lower() for known in descriptions().values() for text in (*known.descriptions, *known.remarks)
        }


def test_a_world_without_such_pictures_is_refused(world: Pictures) -> None:
    with pytest.raises(UserError, match="no conversation of the kind story"):
        ConversationMaker("train", 0, world).make("story", 0)
