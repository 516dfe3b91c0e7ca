from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2chat.data.converters.engine import convert
from m2chat.data.converters.raw import EDITED, OPENERS
from m2chat.data.images import load_image
from m2chat.errors import UserError
from m2chat.schema import Turn

KEY, NEGATIVE = "2682085160072908899", "-5632896413199993329"


def turn(*elements: str | dict[str, str]) -> dict[str, Any]:
    return {"turn": [{"__TEXT__": item} if isinstance(item, str) else item for item in elements]}


def media(key: str, **more: str) -> dict[str, str]:
    return {"__MEDIA__": key, **more}


def talk(number: int, *rounds: dict[str, Any]) -> dict[str, Any]:
    return {"conversation_id": number, "conversation": list(rounds), "negative_candidate_media_keys": [KEY] * 9}


TALKS = [
    talk(0, turn("Happy &amp; love :camera_with_flash: at 10:30", media(KEY)), turn(media(NEGATIVE), "Nice <|img|>")),
    talk(1, turn("alone")),
    talk(2, turn("hi"), turn("look", media("404"))),
    talk(3, turn("hi"), turn("")),
    talk(4, turn("hi"), turn("  don't forget our ).  "), turn("what ?")),
    talk(5, turn("hi"), {"turn": [7]}),
    talk(6, turn("hi"), turn("steal", media("../secret"))),
]  # fmt: skip
FAULTS = {
    "1": "no reply to learn from", "2": "picture missing", "3": "empty turn", "5": "turns are not MMDialog's",
    "6": "picture path leaves the folder (..): make it relative to the folder of --images",
}  # fmt: skip


@pytest.mark.parametrize("form", ["lines", "list"])
def test_mmdialog(raw: Any, run: Callable[..., Any], form: str) -> None:
    first, second = raw.put_photo(f"test/{KEY}.jpg", 1), raw.put_photo(f"test/{NEGATIVE}.jpg", 2)
    raw.put_photo("secret.jpg")
    if form == "lines":
        raw.put_lines("test/conversations.json", TALKS)
    else:
        raw.put("test/conversations.json", TALKS)
    captions = raw.put_lines("captions.jsonl", [{"media_key": NEGATIVE, "caption": "a cake ", "caption_by": "model:x"}])
    done = run("mmdialog", raw.path / "test", captions=captions)
    assert done.rejects == FAULTS and [s.id for s in done.samples] == ["mmdialog/0", "mmdialog/4"]
    sample = done.samples[0]
    assert sample.turns == (
        Turn("user", ("Happy & love 📸 at 10:30", 0)),
        Turn("assistant", (1, "Nice <|img|>")),
    )
    assert done.samples[1].turns[1].text == "don't forget our )."
    assert [image.caption for image in sample.images] == ["", "a cake"]
    assert [image.caption_by for image in sample.images] == ["", "model:x"]
    assert done.records[0]["images"][1]["media_key"] == NEGATIVE
    assert [done.members[0][f"img{i}.jpg"] for i in range(2)] == [first, second]
    assert sample.license.startswith("non-commercial") and done.index["uncaptioned"] == 1


def test_mmdialog_as_one_object_and_with_words_for_captions(raw: Any, run: Callable[..., Any]) -> None:
    import json

    raw.put_photo(f"{KEY}.jpg")
    raw.put("conversations.json", json.dumps(talk(7, turn("hi"), turn("here", media(KEY), "it is")), indent=2))
    done = run("mmdialog", text_as_caption=True)
    assert done.samples[0].id == "mmdialog/7"
    assert (done.samples[0].images[0].caption, done.samples[0].images[0].caption_by) == ("here it is", "turn")


def test_a_broken_line_is_counted(raw: Any, run: Callable[..., Any]) -> None:
    raw.put(
        "conversations.json",
        '{"broken\n{"conversation": [{"turn": [{"__TEXT__": "a"}]}, {"turn": [{"__TEXT__": "b"}]}]}\n7\n',
    )
    done = run("mmdialog")
    assert [s.id for s in done.samples] == ["mmdialog/1"] and done.rejects == {
        "0": "broken json",
        "2": "no conversation",
    }


def test_a_broken_file_is_one_clear_error(raw: Any, job: Callable[..., Any]) -> None:
    raw.put("conversations.json", "[" + '{"conversation": []},' * 3)
    with pytest.raises(UserError, match=r"conversations\.json is broken or not JSON"):
        convert(job("mmdialog"))
    with pytest.raises(UserError, match="give the folder of one split"):
        convert(job("mmdialog", raw.path.parent))


def test_captions_must_be_captions(raw: Any, job: Callable[..., Any]) -> None:
    raw.put_lines("conversations.json", TALKS)
    with pytest.raises(UserError, match="line 1 is not"):
        convert(job("mmdialog", captions=raw.put_lines("c.jsonl", [{"key": "a"}])))


def test_mmdialog_pairs_with_captions(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo(f"images/{KEY}.jpg")
    raw.put_photo(f"images/{NEGATIVE}.jpg")
    pair = [
        turn("cake ?", media(KEY, caption="a piece of cake is sitting on a plate . ")),
        turn("yes", media(NEGATIVE, caption="tea")),
    ]
    path = raw.put("pairs.json", [pair, [turn("alone")], "odd"])
    done = run("mmdialog-captioned", path, images=raw.path / "images")
    (sample,) = done.samples
    assert [image.caption for image in sample.images] == ["a piece of cake is sitting on a plate .", "tea"]
    assert sample.kind == "dialogue" and sample.turns[1].parts == ("yes", 1)
    assert done.rejects == {"1": "no reply to learn from", "2": "no conversation"}


def sis(story: int, photos: list[str], order: list[int]) -> list[list[dict[str, Any]]]:
    return [
        [{"original_text": f"Part {place}.", "text": f"part {place} .", "photo_flickr_id": photo,
          "story_id": str(story), "worker_arranged_photo_order": place, "storylet_id": "1"}]
        for photo, place in zip(photos, order, strict=True)
    ]  # fmt: skip


def test_vist(raw: Any, run: Callable[..., Any]) -> None:
    for number in range(4):
        raw.put_photo(f"images/train/{number}.jpg", number)
    raw.put_photo("images/train/4.png", 4)
    rows = sis(45, ["1", "0", "2", "3", "4"], [1, 0, 2, 3, 4]) + sis(46, ["0", "9"], [0, 1])
    rows[6][0]["original_text"], rows[6][0]["text"] = "", "in [location] ."
    raw.put(
        "sis/train.story-in-sequence.json", {"info": {}, "images": [{"id": "0"}], "albums": [], "annotations": rows}
    )
    described = [
        [{"original_text": "A dog.", "photo_flickr_id": "0"}],
        [{"original_text": "Two.", "photo_flickr_id": "0"}],
    ]
    raw.put("dii/train.description-in-isolation.json", {"annotations": described})
    captions = raw.put_lines("c.jsonl", [{"media_key": "1", "caption": "mine"}])
    done = run("vist", captions=captions)
    (sample,) = done.samples
    assert sample.kind == "story" and sample.turns[0].text in OPENERS and done.rejects == {"46": "picture missing"}
    assert [item.parts for item in sample.turns[1:]] == [(f"Part {i}.", i) for i in range(5)]
    assert [(i.caption, i.caption_by) for i in sample.images[:3]] == [("A dog.", "human"), ("mine", "file"), ("", "")]
    assert sorted(done.members[0]) == ["img0.jpg", "img1.jpg", "img2.jpg", "img3.jpg", "img4.png", "json"]


def test_vist_cleaned(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("img/a.jpg")
    raw.put_photo("img/b.jpg", 1)
    part = {"caption": "the end .", "image_id": "2", "sequence_index": 1}
    first = {"caption": "we began .", "image_id": "1", "sequence_index": 0}
    stories = {"7": [part, first], "8": [{**part, "caption": ""}], "9": [{**part, "image_id": "3"}], "10": [{}]}
    raw.put("val_cleaned.json", stories)
    raw.put("val_image_mapping.json", {"1": "img/a.jpg", "2": "img/b.jpg", "3": "../../b.jpg"})
    done = run("vist-cleaned", split="val", text_as_caption=True)
    (sample,) = done.samples
    assert [item.text for item in sample.turns[1:]] == ["we began .", "the end ."]
    assert [(image.caption, image.caption_by) for image in sample.images] == [
        ("we began .", "turn"),
        ("the end .", "turn"),
    ]
    assert done.rejects == {
        "8": "story with an empty sentence", "10": "story without captions, images or order",
        "9": "picture path leaves the folder (..): make it relative to the folder of --images",
    }  # fmt: skip


def test_instructpix2pix(raw: Any, run: Callable[..., Any]) -> None:
    raw.put("seeds.json", [["0000123", ["1371", "2044"]], ["0000124", ["1"]], ["0000125", ["1"]], 7])
    for name in ("0000123", "0000124"):
        raw.put(f"{name}/prompt.json", {"input": "a {dog}", "edit": "make it a {cat}", "output": "a {cat}"})
    for side in (0, 1):
        raw.put_photo(f"0000123/1371_{side}.jpg", side)
        raw.put_photo(f"0000124/1_{side}.jpg", side)
    raw.put("0000124/prompt.json", {"input": "a dog", "edit": " ", "output": "a cat"})
    done = run("instructpix2pix")
    (sample,) = done.samples
    assert sample.id == "instructpix2pix/0000123/1371" and sample.turns[0].parts == (0, "make it a {cat}")
    assert sample.turns[1].text in [words.replace("{}", "make it a {cat}") for words in EDITED]
    assert [image.caption for image in sample.images] == ["a {dog}", "a {cat}"]
    assert done.rejects == {
        "0000123/2044": "picture missing", "0000124/1": "no instruction", "0000125/1": "prompt.json missing",
        "7": "entry of seeds.json is not a prompt with its seeds",
    }  # fmt: skip


def test_magicbrush(raw: Any, run: Callable[..., Any]) -> None:
    for number, name in enumerate(("5-input.png", "5-output1.png", "5-output2.png", "5-output3.png")):
        raw.put_photo(f"images/5/{name}", number)
    edits = [("5-input.png", "5-output1.png"), ("5-output1.png", "5-output2.png"), ("5-input.png", "5-output3.png")]
    session = [{"input": i, "mask": "5-mask.png", "output": o, "instruction": f"change {o}"} for i, o in edits]
    raw.put("edit_sessions.json", {"5": session, "6": [{"input": "6-input.png"}]})
    captions = raw.put_lines("c.jsonl", [{"media_key": "5-output1.png", "caption": "changed"}])
    done = run("magicbrush", captions=captions)
    (sample,) = done.samples
    assert [item.parts[0] for item in sample.turns[::2]] == [0, "change 5-output2.png", "change 5-output3.png"]
    assert [item.pictures for item in sample.turns[1::2]] == [(1,), (2,), (3,)]
    assert [item.context for item in sample.turns[::2]] == [None, 1, 0]
    assert sample.license == "CC-BY-4.0" and sample.images[1].caption == "changed"
    assert done.rejects == {"6": "edit without input, output or instruction"}


def test_llava(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("coco/1.jpg")

    def item(name: str, *values: str, **more: Any) -> dict[str, Any]:
        said = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
        return {"id": name, "conversations": said, **more}

    path = raw.put("llava.json", [
        item("before", "<image>\nWhat is\nthis?", "A dog.\n1. big", "Sure?", "See it", image="coco/1.jpg"),
        item("after", "What is this?\n<image>", "A dog.", image="coco/1.jpg"),
        item("none", "What is this?", "A dog.", image="coco/1.jpg"),
        item("text", "Hello <|img|>", "Hi"),
        item("gone", "<image>", "A dog.", image="coco/2.jpg"),
        {"id": "odd", "conversations": [{"from": "robot", "value": "beep"}]},
        {"id": "bad"},
        item("empty", "", "Hi"),
    ])  # fmt: skip
    done = run("llava", path, images=raw.path)
    parts = {s.id.partition("/")[2]: [item.parts for item in s.turns] for s in done.samples}
    assert parts == {
        "before": [(0, "What is\nthis?"), ("A dog.\n1. big",), ("Sure?",), ("See it",)],
        "after": [("What is this?", 0), ("A dog.",)],
        "none": [(0, "What is this?"), ("A dog.",)],
        "text": [("Hello <|img|>",), ("Hi",)],
    }
    assert done.rejects == {
        "gone": "picture missing",
        "odd": "speaker is neither human nor gpt",
        "6": "item is not LLaVA's",
        "empty": "empty turn",
    }


def test_alpaca(raw: Any, run: Callable[..., Any]) -> None:
    items = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3\n"},
        {"instruction": "Say hi.", "input": "", "output": "\ud83dhi"},
        {"instruction": "Be silent.", "output": ""},
    ]
    done = run("alpaca", raw.put("alpaca.json", items))
    assert [item.text for sample in done.samples for item in sample.turns] == ["Add.\n1 and 2", "3", "Say hi.", "?hi"]
    assert {s.kind for s in done.samples} == {"dialogue"} and done.rejects == {"2": "no answer"}


@pytest.mark.parametrize("table", ["jsonl", "csv"])
def test_own_folder(raw: Any, run: Callable[..., Any], table: str) -> None:
    kept = raw.put_photo("a.jpg")
    grey = raw.put("sub/b.png", raw.as_bytes(raw.photo(mode="L"), "PNG"))
    raw.put("html.jpg", "<html>")
    rows = [
        ("a.jpg", "two\n words"),
        ("sub/b.png", "{}"),
        ("html.jpg", "x"),
        ("c.jpg", "x"),
        ("/etc/d.jpg", "x"),
        ("e.jpg", " "),
    ]
    if table == "jsonl":
        raw.put_lines("metadata.jsonl", [{"file_name": name, "caption": words, "artist": "me"} for name, words in rows])
    else:
        raw.put("metadata.csv", "file_name,text,artist\n" + "".join(f'{name},"{words}",me\n' for name, words in rows))
    done = run("folder", name="mine", license="CC0")
    assert [(s.id, s.images[0].caption, s.license) for s in done.samples] == [
        ("mine/a.jpg", "two words", "CC0"), ("mine/sub/b.png", "{}", "CC0"),
    ]  # fmt: skip
    assert done.samples[1].turns[0].text == "Draw {}" and done.samples[0].meta == {"artist": "me"}
    assert done.members[0]["img0.jpg"] == kept
    np.testing.assert_array_equal(done.samples[1].images[0].pixels, load_image(Path(grey).read_bytes()))
    assert done.rejects == {
        "html.jpg": "undecodable picture (UnidentifiedImageError)", "c.jpg": "picture missing",
        "/etc/d.jpg": "picture path is absolute: make it relative to the folder of --images", "e.jpg": "no caption",
    }  # fmt: skip


def test_a_folder_without_its_table(raw: Any, job: Callable[..., Any]) -> None:
    raw.put_photo("a.jpg")
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        convert(job("folder"))
