"""Questions and outputs of another form: file, record and field are named before anything is answered."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m2chat.benchmarks import BENCHMARKS, QuestionSource, engine
from m2chat.errors import UserError
from m2chat.evaluation.parts import parts_of, reply_of

MADE: dict[str, Callable[[Path], Path]] = runpy.run_path(str(Path(__file__).with_name("sources.py")))["MADE"]
TURNS = [{"from": "human", "value": "which ?"}, {"from": "gpt", "value": "this"}]
OPENING = {"total_uid": "1", "conversations": [{"input": [{"text": "a", "image": None}]}, {"output": []}]}
ISG = {"id": "1", "Query": [{"type": "text", "content": "a"}], "Golden": []}
MMIE = {"id": "SA-1", "question": [{"text": "a"}], "gt_answer": []}
INTERLEAVED = {"id": "1", "image": [], "conversations": TURNS}
WEAVE = {
    "idx": 1, "images": ["1.png", "2.png"],
    "chats": [{"type": "text", "content": "Make Image #1 red."}, {"type": "image", "content": "Image #2"}],
}  # fmt: skip
VIST = {"story_id": 1, "album_id": 2, "photo_flickr_id": 3, "worker_arranged_photo_order": 0, "text": "a"}


def written(path: Path, kind: str, value: Any) -> Path:
    """A file of one record, as the kind's files are."""
    path.write_text(json.dumps(value if kind in ("opening", "isg", "geneval", "vist") else [value]), encoding="utf-8")
    return path


def turns(*items: Any) -> dict[str, Any]:
    return {"conversations": [{"input": list(items)}, {"output": []}]}


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("geneval", {"prompt": None}, r"f\.json:1: the field 'prompt' is None: it must be a text"),
        ("geneval", {"prompt": 5}, "'prompt' is 5: it must be a text"),
        ("geneval", {"prompt": " "}, "'prompt' is ' ': it must be a text"),
        ("geneval", None, "needs the fields prompt, and has NoneType"),
        ("wise", {"Prompt": None, "prompt_id": 1}, "'Prompt' is None: it must be a text"),
        ("opening", OPENING | {"conversations": None}, "'conversations' is None: it must be a list of objects"),
        ("opening", OPENING | {"conversations": []}, "'conversations' is .*: it must be a list with the input and the"),
        ("opening", OPENING | {"conversations": {"a": 1}}, "'conversations' is .*: it must be a list of objects"),
        ("opening", OPENING | {"conversations": [{"input": None}]}, r"conversations\[0\]: the field 'input' is None"),
        ("opening", OPENING | turns("x"), r"input\[0\] must be an object, and has str"),
        ("opening", OPENING | turns({"text": ["a"]}), r"input\[0\]: the field 'text' is \['a'\]"),
        ("opening", OPENING | turns({"image": 5}), "'image' is 5: it must be a text or null"),
        ("isg", ISG | {"Query": None}, r"f\.json:1: the field 'Query' is None"),
        ("isg", ISG | {"Query": ["x"]}, r"Query\[0\] must be an object, and has str"),
        ("isg", ISG | {"Query": [{"content": "x"}]}, r"Query\[0\]: the field 'type' is missing"),
        ("isg", ISG | {"Query": [{"type": "text", "content": None}]}, "'content' is None: it must be a text"),
        ("isg", ISG | {"Golden": "x"}, "'Golden' is 'x': it must be a list of objects"),
        ("isg", ISG | {"id": None}, "None becomes the name of a file"),
        ("mmie", MMIE | {"question": ["x"]}, r"record 0: question\[0\] must be an object"),
        ("mmie", MMIE | {"question": None}, "'question' is None"),
        ("mmie", MMIE | {"id": None}, "'id' is None: it must be a text or a whole number"),
        ("interleavedbench", INTERLEAVED | {"image": None}, "'image' is None: it must be a list of texts"),
        ("interleavedbench", INTERLEAVED | {"image": "a.jpg"}, "'image' is 'a.jpg': it must be a list of texts"),
        ("interleavedbench", INTERLEAVED | {"conversations": TURNS[:1]}, "with the request and the reply"),
        ("interleavedbench", INTERLEAVED | {"conversations": None}, "'conversations' is None"),
        ("weave", WEAVE | {"chats": None}, "'chats' is None"),
        ("weave", WEAVE | {"images": None}, "'images' is None"),
        ("weave", WEAVE | {"idx": None}, "'idx' is None"),
        ("vist", [VIST], "needs the fields annotations, and has list"),
        ("vist", {"annotations": None}, "'annotations' is None: it must be a list"),
        ("vist", {"annotations": [5]}, "annotation 0 needs the fields story_id, .* and has int"),
        ("vist", {"annotations": [{**VIST, "worker_arranged_photo_order": "a"}]}, "'a': it must be a whole number"),
        ("vist", {"annotations": [{**VIST, "photo_flickr_id": None}]}, "'photo_flickr_id' is None"),
        ("vist", {"annotations": [[{**VIST, "story_id": None}], [VIST]]}, "annotation 0: the field 'story_id' is None"),
    ],
)
def test_questions_of_another_form(kind: str, record: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        BENCHMARKS[kind].questions(QuestionSource(written(tmp_path / "f.json", kind, record)))
    for value in ({"a": 1}, None, "x", 5, [None], ["x"]):  # the outermost shape
        with pytest.raises(UserError, match=r"f\.json"):
            BENCHMARKS[kind].questions(QuestionSource(written(tmp_path / "f.json", "vist", value)))


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("opening", OPENING | turns({"text": "<image> <image>", "image": "1.png"}), "marks <image>: 2, for 1 picture"),
        ("interleavedbench", INTERLEAVED | {"conversations": [{"value": "<image> <image> ?"}, TURNS[1]]},
         "marks <image>: 2, for 0 pictures"),
        ("interleavedbench", INTERLEAVED | {"conversations": [TURNS[0], {"value": "<image>"}]},
         "marks <image>: 1, for 0 pictures"),
        ("isg", ISG | {"Query": [{"type": "video", "content": "a.mp4"}]}, "an item of type 'video'"),
        ("weave", WEAVE | {"images": ["1.png"]}, "Image #2 is none of its 1 pictures"),
        ("weave", WEAVE | {"images": []}, "it has no pictures"),
        ("weave", WEAVE | {"chats": WEAVE["chats"] * 2 + WEAVE["chats"][:1]}, "5 messages, which are not asked"),  # type: ignore[operator,index]
        ("weave", WEAVE | {"chats": [WEAVE["chats"][0], {"type": "image", "content": "?"}]}, "names no picture"),  # type: ignore[index]
        ("opening", OPENING | turns({"text": " ", "image": "1.png"}), "nothing but missing pictures"),
        ("opening", OPENING | turns(), "a message without text and picture"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_asked_are_refused_or_counted(
    kind: str, record: Any, reason: str, tmp_path: Path
) -> None:
    (question,) = BENCHMARKS[kind].questions(QuestionSource(written(tmp_path / "f.json", kind, record)))
    (other,) = BENCHMARKS["geneval"].questions(
        QuestionSource(written(tmp_path / "g", "geneval", {"prompt": "a"}), samples=1)
    )
    with pytest.raises(UserError, match="1 of 2 questions cannot be asked, the first is '1': .*" + reason):
        engine.askable([question, other], leave_out=False)
    kept, reasons = engine.askable([question, other, other], leave_out=True)
    assert kept == [other, other] and [reason in text for text in reasons] == [True] and reasons.total() == 1
    with pytest.raises(UserError, match="none of 1 questions can be asked; the first: .*" + reason):
        engine.askable([question], leave_out=True)


def test_a_question_as_a_text_alone_is_written_with_its_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "data.json", "mmie", MMIE | {"question": "which ?"})
    questions = BENCHMARKS["mmie"].questions(QuestionSource(path))
    BENCHMARKS["mmie"].write(tmp_path / "out", "ours", [(questions[0], [reply_of(["this"])])])
    (record,) = json.loads((tmp_path / "out/data.json").read_text(encoding="utf-8"))
    assert record["question"] == [{"text": "which ?", "image": None}] and record["answer"][0]["text"] == "this"


@pytest.mark.parametrize(
    ("kind", "file", "content", "message"),
    [
        ("opening", "0101001.json", [1], "--outputs: .* needs the fields conversations, and has list"),
        ("opening", "0101001.json", {"conversations": None}, "--outputs: .*'conversations' is None"),
        ("opening", "0101001.json", {"conversations": [{}, {"output": ["x"]}]}, r"output\[0\] must be an object"),
        ("opening", "0101001.json", {"conversations": [{}, {"output": [{"text": ["a"]}]}]}, r"'text' is \['a'\]"),
        ("opening", "0101001.json", {"conversations": [{}, {"output": [{"image": 5}]}]}, "'image' is 5"),
        ("isg", "output/m.jsonl", [1], "--outputs: .*:1 needs the fields id, and has list"),
        ("isg", "output/m.jsonl", {"id": "0000", "output": "text"}, "'output' is 'text': it must be a list"),
        ("isg", "output/m.jsonl", {"id": "0000", "output": ["a"]}, r"output\[0\] must be an object"),
        ("isg", "output/m.jsonl", {"id": "0000", "output": [{"type": "image", "content": None}]}, "'content' is None"),
        ("isg", "output/m.jsonl", {"id": "0000", "output": [{"type": "video", "content": "a"}]}, "text or image"),
        ("mmie", "data.json", [{"id": "SA-1", "answer": 5}], "'answer' is 5"),
        ("mmie", "data.json", {"a": 1}, "must hold a list of objects, and holds dict"),
        ("interleavedbench", "interleaved_bench.json", [INTERLEAVED | {"id": "task_0", "image": None}], "'image' is"),
        ("vist", "challenge.json", {"output_stories": [{"photo_sequence": 5, "story_text_normalized": "a"}]}, "is 5"),
        ("vist", "prediction_test.json", {"77": "a story"}, "'77' is 'a story': it must be a list of texts"),
    ],
)
def test_outputs_of_another_form(kind: str, file: str, content: Any, message: str, tmp_path: Path) -> None:
    questions = BENCHMARKS[kind].questions(QuestionSource(MADE[kind](tmp_path / "source")))
    path = tmp_path / "theirs" / file
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(BENCHMARKS[kind].read(tmp_path / "theirs", "m", questions))


def test_pictures_that_a_reply_announces_were_due(tmp_path: Path) -> None:
    for kind, name, content in (
        ("opening", "0101001.json", {"conversations": [{}, {"output": [{"text": "see <image> <image>"}]}]}),
        ("interleavedbench", "interleaved_bench.json",
         [{"id": "task_0", "image": [], "conversations": [TURNS[0], {"value": "see <image> <image>"}]}]),
    ):  # fmt: skip
        questions = BENCHMARKS[kind].questions(QuestionSource(MADE[kind](tmp_path / kind)))
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        known = next(iter(BENCHMARKS[kind].read(tmp_path, "m", questions)))
        assert known is not None and known[0] is not None
        assert len(known[0].images) == 2 and parts_of(known[0]) == ["see"]


def test_pictures_are_counted_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    questions = BENCHMARKS["geneval"].questions(QuestionSource(MADE["geneval"](tmp_path / "source"), samples=3))
    folder = tmp_path / "theirs/00000/samples"
    folder.mkdir(parents=True)
    for number, name in enumerate(("2", "10", "9"), 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.png")
    (folder / "².png").write_bytes(b"")
    known = list(BENCHMARKS["geneval"].read(tmp_path / "theirs", "m", questions))
    assert [None if item is None else item[0].pictures[0][0, 0, 0] for item in known if item is None or item[0]] == [
        1, 3, 2, None, None, None,
    ]  # fmt: skip


def test_texts_of_other_encodings_are_read_or_refused(tmp_path: Path) -> None:
    questions = BENCHMARKS["weave"].questions(QuestionSource(MADE["weave"](tmp_path / "source")))
    folder = tmp_path / "m/imgs"
    folder.mkdir(parents=True)
    (folder / "5_1_1.txt").write_bytes("grün".encode("utf-16"))
    ((first, text, last),) = [item or () for item in BENCHMARKS["weave"].read(tmp_path, "m", questions)]
    assert (first, last) == (None, None) and text is not None and list(text.texts) == ["grün"]
    absent: list[str] = []
    (made,) = engine.predictions_of_files(BENCHMARKS["weave"], questions, tmp_path, "m", absent)
    assert made.id == "5#1" and absent == ["5#0", "5#2"]
    assert len(list(engine.predictions_of_files(BENCHMARKS["weave"], questions, tmp_path, "m"))) == 3
    (folder / "5_1_1.txt").write_bytes("grün".encode("cp1252"))
    with pytest.raises(UserError, match=r"5_1_1\.txt is not UTF-8: save it as UTF-8 \(b'gr"):
        list(BENCHMARKS["weave"].read(tmp_path, "m", questions))
    for kind in ("geneval", "wise"):
        (tmp_path / "f").write_bytes('[{"prompt": "grün"}]'.encode("cp1252"))
        with pytest.raises(UserError, match="f is not UTF-8: save it as UTF-8"):
            BENCHMARKS[kind].questions(QuestionSource(tmp_path / "f"))


def test_verified_prompts_are_found_below_the_benchmarks_folder(tmp_path: Path) -> None:
    MADE["wise"](tmp_path / "data_verified")
    assert len(BENCHMARKS["wise"].questions(QuestionSource(tmp_path))) == 4
