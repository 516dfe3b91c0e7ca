"""What each benchmark's evaluator takes of a folder, read without the product's code.

Each function gets the folder, the system's name and the source, and fails where the evaluator would drop something.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


def _jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _file(source: Path, pattern: str) -> Path:
    return source if source.is_file() else next(iter(sorted(source.rglob(pattern))))


def _is_picture(path: Path, kind: str) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == kind and image.mode == "RGB"


def opening(folder: Path, name: str, source: Path) -> None:
    base = folder / f"{name}_output"
    questions = _jsonl(_file(source, "test_data.jsonl"))
    for question in questions:
        record = json.loads((base / f"{question['total_uid']}.json").read_text(encoding="utf-8"))
        asked, answered = record.pop("conversations")
        assert record == {key: value for key, value in question.items() if key not in ("total_uid", "conversations")}
        assert asked == question["conversations"][0] and list(answered) == ["output"] and answered["output"]
        for item in answered["output"]:
            assert set(item) == {"text", "image"} and "<image>" not in item["text"]
            assert item["image"] is None or _is_picture(base / os.path.basename(item["image"]), "JPEG")
            assert item["image"] is None or re.fullmatch(rf"{question['total_uid']}-o-\d+\.jpg", item["image"])
    assert len(list(base.glob("*.json"))) == len(questions)


def isg(folder: Path, name: str, source: Path) -> None:
    questions = _jsonl(_file(source, "ISG-Bench.jsonl"))
    records = _jsonl(folder / "output" / f"{name}.jsonl")
    assert [record["id"] for record in records] == [question["id"] for question in questions]
    for record, question in zip(records, questions, strict=True):
        output = record.pop("output")
        assert record == question, "the evaluator reads Query and Golden from this file"
        if output is not None:
            assert output and all(set(item) == {"type", "content"} for item in output)
            images = [item["content"] for item in output if item["type"] == "image"]
            assert images == [f"output_images/{name}/{record['id']}_{k}.png" for k in range(1, len(images) + 1)]
            assert all(_is_picture(folder / image, "PNG") for image in images)
            assert all(item["type"] == "image" or item["content"].strip() for item in output)


def geneval(folder: Path, name: str, source: Path) -> None:
    lines = _file(source, "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(os.listdir(folder)) == [f"{k:05d}" for k in range(len(lines))]
    for number, line in enumerate(lines):
        place = folder / f"{number:05d}"
        assert (place / "metadata.jsonl").read_text(encoding="utf-8") == line
        pictures = sorted(os.listdir(place / "samples"))
        assert len(pictures) == 4 and all(re.fullmatch(r"\d+\.png", picture) for picture in pictures)
        assert all(_is_picture(place / "samples" / picture, "PNG") for picture in pictures)


def magicbrush(folder: Path, name: str, source: Path) -> None:
    true, results = folder / "test" / "images", folder / "testResults"
    assert sorted(os.listdir(true)) == sorted(os.listdir(results)) != []
    for session in os.listdir(true):
        turns = len([file for file in os.listdir(true / session) if "-output" in file])
        expected = [f"{session}_1.png"]
        for turn in range(2, turns + 1):
            expected += [f"{session}_inde_{turn}.png", f"{session}_iter_{turn}.png"]
        assert sorted(os.listdir(results / session)) == sorted(expected)
        wanted = [f"{session}-input.png", *(f"{session}-output{turn}.png" for turn in range(1, turns + 1))]
        assert sorted(os.listdir(true / session)) == sorted(wanted)
        assert all(_is_picture(true / session / file, "PNG") for file in wanted)


def mmie(folder: Path, name: str, source: Path) -> None:
    questions = json.loads(_file(source, "data.json").read_text(encoding="utf-8"))
    records = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == [question["id"] for question in questions]
    images = []
    for record, question in zip(records, questions, strict=True):
        assert set(record) == {"id", "question", "answer", "model", "gt_answer"} and record["model"] == name
        assert record["gt_answer"] == question["gt_answer"]
        assert [item["text"] for item in record["question"]] == [item["text"] for item in question["question"]]
        both = [item for side in ("question", "answer") for item in record[side]]
        assert all(set(item) == {"text", "image"} for item in both)
        shown = [item["image"] for item in both if item["image"]]
        # At three pictures the evaluator stops reading: only the last one may be the third.
        assert len(shown) <= 3
        images += shown
    assert len(images) == len(set(images)) and all(re.fullmatch(r"images/\d+\.png", image) for image in images)
    assert all(_is_picture(folder / image, "PNG") for image in images)


def wise(folder: Path, name: str, source: Path) -> None:
    ids = [row["prompt_id"] for path in source.glob("*.json") for row in json.loads(path.read_text(encoding="utf-8"))]
    assert sorted(os.listdir(folder)) == sorted(f"{id_}.png" for id_ in ids)
    assert all(_is_picture(folder / f"{id_}.png", "PNG") for id_ in ids)


def vist(folder: Path, name: str, source: Path) -> None:
    rows = [row for (row,) in json.loads(_file(source, "*.story-in-sequence.json").read_text())["annotations"]]
    challenge = json.loads((folder / "challenge.json").read_text(encoding="utf-8"))
    assert set(challenge) == {"team_name", "evaluation_info", "output_stories"} and challenge["team_name"] == name
    sequences = [tuple(story["photo_sequence"]) for story in challenge["output_stories"]]
    photos = {row["photo_flickr_id"] for row in rows}
    assert len(set(sequences)) == len(sequences) and {photo for item in sequences for photo in item} == photos
    stories = {}
    for story in challenge["output_stories"]:
        assert set(story) == {"photo_sequence", "story_text_normalized", "album_id"}
        assert len(story["photo_sequence"]) == 5 and story["story_text_normalized"].islower()
        stories.setdefault(story["album_id"], [story["story_text_normalized"]])
    assert json.loads((folder / "prediction_test.json").read_text(encoding="utf-8")) == stories
    assert set(stories) == {row["album_id"] for row in rows}


def weave(folder: Path, name: str, source: Path) -> None:
    expected = set()
    for record in json.loads(_file(source, "test.json").read_text(encoding="utf-8")):
        answers = [chat for chat in record["chats"] if chat["role"] == "assistant"]
        for turn, answer in enumerate(answers):
            if answer["type"] == "image":
                number = int(answer["content"].removeprefix("Image #"))
                expected.add(os.path.basename(record["images"][number - 1]))
            else:
                expected.add(f"{os.path.basename(record['images'][0]).rpartition('.')[0]}_{turn}.txt")
    assert set(os.listdir(folder / name / "imgs")) == expected
    for file in expected:
        path = folder / name / "imgs" / file
        assert path.read_text(encoding="utf-8").strip() if file.endswith(".txt") else _is_picture(path, "JPEG")


def interleavedbench(folder: Path, name: str, source: Path) -> None:
    questions = json.loads(_file(source, "interleaved_bench.json").read_text(encoding="utf-8"))
    records = json.loads((folder / "interleaved_bench.json").read_text(encoding="utf-8"))
    for record, question in zip(records, questions, strict=True):
        assert list(record) == list(question) and record["id"] == question["id"]
        asked, answer = record["conversations"]
        assert asked == question["conversations"][0] and answer["from"] == "gpt"
        shown = asked["value"].count("<image>")
        assert record["image"][:shown] == question["image"][:shown]
        assert len(record["image"]) == shown + answer["value"].count("<image>")
        assert all(_is_picture(folder / image, "PNG") for image in record["image"][shown:])


RULES: dict[str, Callable[[Path, str, Path], None]] = {
    "opening": opening, "isg": isg, "geneval": geneval, "magicbrush": magicbrush, "mmie": mmie, "wise": wise,
    "vist": vist, "weave": weave, "interleavedbench": interleavedbench,
}  # fmt: skip
