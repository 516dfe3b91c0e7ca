"""Each benchmark's questions go in, and its files come out as its evaluator takes them."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2chat.benchmarks import BENCHMARKS, Ask, Question, QuestionSource, engine
from m2chat.benchmarks.vist import normalised_story
from m2chat.commands import bench, main
from m2chat.errors import UserError
from m2chat.evaluation.parts import PicturePart, parts_of, reply_of
from m2chat.evaluation.predictions import read_predictions
from m2chat.evaluation.results import read_results
from m2chat.pipeline import M2ChatPipeline
from m2chat.schema import Reply

HERE = Path(__file__).parent
SOURCES: dict[str, Any] = runpy.run_path(str(HERE / "sources.py"))
RULES: dict[str, Any] = runpy.run_path(str(HERE / "rules.py"))["RULES"]


def canned(ask: Ask, value: int) -> Reply:
    """A reply such as the message allows."""
    picture = PicturePart(np.full((8, 8, 3), value % 256, np.uint8), "something")
    if ask.draw or ask.image == "force":
        return reply_of(["Here it is!", picture][-2 if ask.image == "force" else -1 :])
    if ask.image == "never":
        return reply_of(["It isn't one."])
    return reply_of(["one", picture, "two", *([picture] if (ask.max_images or 2) > 1 else []), "the end"])


def source_of(kind: str, origin: str, tmp_path: Path) -> Path:
    if origin == "made":
        path: Path = SOURCES["MADE"][kind](tmp_path / "source")
        return path
    if "M2CHAT_FIXTURES" not in os.environ:
        pytest.skip("M2CHAT_FIXTURES is not set: it names the folder of the sample files")
    return Path(os.environ["M2CHAT_FIXTURES"]) / "benchmarks" / SOURCES["FIXTURES"][kind]


def asked(kind: str, source: Path) -> list[Question]:
    return BENCHMARKS[kind].questions(QuestionSource(source))


@pytest.mark.parametrize("origin", ["made", pytest.param("fixture", marks=pytest.mark.fixtures)])
@pytest.mark.parametrize("kind", BENCHMARKS)
def test_files_are_what_the_evaluator_takes(kind: str, origin: str, tmp_path: Path) -> None:
    source = source_of(kind, origin, tmp_path)
    questions = asked(kind, source)
    answers = [
        [canned(ask, 7 * number + turn) for turn, ask in enumerate(question.asks)]
        for number, question in enumerate(questions)
    ]
    if kind in ("isg", "opening"):
        answers[-1] = [Reply((), ())]  # a model that replied with nothing
    folder = tmp_path / "files"
    folder.mkdir()
    BENCHMARKS[kind].write(folder, "ours", zip(questions, answers, strict=True))
    RULES[kind](folder, "ours", source)
    # What was written is read again; texts and places of pictures are the same.
    back = list(BENCHMARKS[kind].read(folder, "ours", questions))
    for question, replies, known in zip(questions, answers, back, strict=True):
        assert known is not None
        for ask, one, other in zip(question.asks, replies, known, strict=True):
            assert other is not None
            shape = [part if isinstance(part, str) else "V" for part in parts_of(one)]
            found = [part if isinstance(part, str) else "V" for part in parts_of(other)]
            if kind == "vist":
                shape = [normalised_story(part) for part in shape]
            if ask.draw or ask.image == "force":  # such evaluators take the picture alone
                shape = ["V"]
            assert found == shape


def test_questions_are_what_their_authors_mean(tmp_path: Path) -> None:
    def parts(ask: Ask) -> list[str]:
        return [part if isinstance(part, str) else Path(part.media_key).name for part in ask.parts]

    made = {kind: asked(kind, make(tmp_path / kind)) for kind, make in SOURCES["MADE"].items()}
    first, _ = made["opening"]
    assert parts(first.asks[0]) == ["nothing to see i", "a picture 1", "1-i-1.jpg", "of 1", "a picture 2", "1-i-2.jpg",
                                    "of 1"]  # fmt: skip
    reference = first.asks[0].reference_reply()
    captions = [segment.caption for segment in reference.segments if segment.caption is not None]
    assert captions == ["a picture 1", "a picture 2"] and len(reference.pictures) == 2
    assert [question.id for question in made["geneval"]][:5] == ["00000/0000", "00000/0001", "00000/0002",
                                                                 "00000/0003", "00001/0000"]  # fmt: skip
    assert [(item.id, len(item.asks)) for item in made["magicbrush"]] == [("7", 1), ("9", 3), ("9/inde_2", 1),
                                                                          ("9/inde_3", 1)]  # fmt: skip
    whole, second, third = made["magicbrush"][1:]
    assert [parts(ask) for ask in whole.asks] == [["9-input.png", "make it 1"], ["make it 2"], ["make it 3"]]
    assert parts(second.asks[0]) == ["9-output1.png", "make it 2"] and parts(third.asks[0])[0] == "9-output2.png"
    assert [(item.asks[0].image, item.asks[0].max_images) for item in made["mmie"]] == [("auto", 3), ("auto", 1),
                                                                                        ("never", 1)]  # fmt: skip
    (chat,) = made["weave"]
    assert [parts(ask) for ask in chat.asks] == [["5_1.jpg", "Make picture 1 blue."],
                                                 ["Is picture 2 darker than picture 1?"],
                                                 ["Now picture 1 in the colours of picture 2."]]  # fmt: skip
    assert [item.id for item in made["vist"]] == ["77/10-11-12-13-14", "77/15-16-17-18-19"]
    assert made["vist"][0].asks[0].reference[0].count("did n't see") == 5
    assert parts(made["interleavedbench"][0].asks[0]) == ["first", "0.png", "and then?"]


@pytest.mark.fixtures
@pytest.mark.parametrize("kind", BENCHMARKS)
def test_published_outputs_are_read(kind: str, tmp_path: Path) -> None:
    questions = asked(kind, source_of(kind, "fixture", tmp_path))
    path, count = SOURCES["PEERS"][kind]
    outputs = Path(os.environ["M2CHAT_FIXTURES"]) / "benchmarks" / path
    predictions = list(engine.predictions_of_files(BENCHMARKS[kind], questions, outputs, "theirs"))
    known = list(BENCHMARKS[kind].read(outputs, "theirs", questions))
    answered = sum(replies is not None for replies in known)
    assert answered == count
    assert len(predictions) == sum(len(question.asks) for question in questions)


def test_quirks_of_published_outputs(tmp_path: Path) -> None:
    (question, other) = asked("opening", SOURCES["MADE"]["opening"](tmp_path / "source"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    Image.new("RGB", (8, 8), "red").save(theirs / "p.jpg", "PNG")  # PNG inside, as one model's files are
    items = [{"text": "a <image>", "image": "./Elsewhere/p.jpg"}, {"image": None, "text": "b"}]
    items.append({"text": "c", "image": "gone.jpg"})
    record = {"conversations": [{"input": []}, {"output": items}]}
    (theirs / f"{question.id}.jsonl").write_text(json.dumps(record, indent=4), encoding="utf-8")
    known, nothing = BENCHMARKS["opening"].read(theirs, "x", [question, other])
    assert nothing is None and known is not None
    (reply,) = known
    assert reply is not None
    assert [part if isinstance(part, str) else "V" for part in parts_of(reply)] == ["a", "V", "b", "c"]
    with pytest.raises(UserError, match="outputs to none of the 2 questions of OpenING"):
        list(engine.predictions_of_files(BENCHMARKS["opening"], [question, other], tmp_path, "x"))
    assert [image is None for image in reply.images] == [False, True, True] and reply.segments[-1].caption == "c", (
        "one that was due"
    )
    for wrong, message in (
        ({"text": ["a"]}, r"'text' is \['a'\]: it must be a text"),
        ({"image": 5}, "'image' is 5"),
        ("a", "must be an object, and has str"),
    ):
        record["conversations"][1]["output"] = [wrong]
        (theirs / f"{question.id}.jsonl").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            list(BENCHMARKS["opening"].read(theirs, "x", [question]))


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    made = M2ChatPipeline.from_pretrained()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def run(pipe: M2ChatPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command with few steps, on a model that is loaded once; returns its exit code."""
    monkeypatch.setattr(bench, "load_pipeline", lambda options: pipe)
    monkeypatch.chdir(tmp_path)  # it runs anywhere
    few = ("--steps", "1", "--max-new-tokens", "8", "--max-images", "1")
    return lambda *arguments: main(["bench", *map(str, arguments), *few])


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_a_run_goes_on_in_shards_after_it_was_killed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCES["MADE"]["geneval"](tmp_path / "source")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("geneval", source, whole, "--no-score", "--samples", "2") == 0
    assert "evaluate_images.py" in capsys.readouterr().out and not (whole / "scores").exists()

    seen: list[str] = []
    replies_to = engine.replies_to

    def dying(pipe: Any, question: Question, settings: Any) -> Iterator[Reply]:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(question.id)
        yield from replies_to(pipe, question, settings)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "replies_to", dying)
        with pytest.raises(KeyboardInterrupt):
            run("geneval", source, parts, "--samples", "2", "--shard", "1/2")
    with (parts / "answers/predictions.0.part.jsonl").open("a") as file:
        file.write('{"id": "00001/0000", "repl')  # it was cut off there
    assert not (parts / "files").exists()
    assert run("geneval", source, parts, "--samples", "2", "--shard", "2/2") == 0
    assert "3 of 4 questions are answered: run the other shards" in capsys.readouterr().out

    def counted(pipe: Any, question: Question, settings: Any) -> Iterator[Reply]:
        seen.append(question.id)
        yield from replies_to(pipe, question, settings)

    monkeypatch.setattr(engine, "replies_to", counted)
    assert run("geneval", source, parts, "--samples", "2", "--shard", "1/2") == 0
    assert seen == ["00000/0000", "00001/0000"], "only what was missing"
    assert pictures(parts / "files") == pictures(whole / "files") and len(pictures(whole / "files")) == 4
    assert len(set(pictures(whole / "files").values())) == 4, "every picture has a noise of its own"
    metrics, protocol = read_results(parts / "scores/results.json")
    assert metrics["clip_score"].n == 4 and metrics["pictures_missing"].value == 0
    assert (protocol["dataset"], protocol["stage"]) == ("GenEval", "m2chat")

    # Another file has another question by the same id: it is asked.
    lines = (source / "prompts/evaluation_metadata.jsonl").read_text().splitlines()
    (source / "prompts/evaluation_metadata.jsonl").write_text(lines[0] + "\n" + lines[1].replace("2 rings", "no ring"))
    seen.clear()
    assert run("geneval", source, parts, "--samples", "2", "--no-score") == 0
    assert seen == ["00001/0000", "00001/0001"]
    assert "no ring" in (parts / "files/00001/metadata.jsonl").read_text()
    assert run("geneval", source, parts, "--samples", "2", "--seed", "1") == 2
    assert "was generated with other settings or weights" in capsys.readouterr().err
    assert run("geneval", source, parts, "--shard", "3/2") == 2
    assert run("geneval", source, parts, "--name", "../x") == 2
    assert "becomes the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["isg", "magicbrush"])
def test_the_model_replies_and_is_compared_with_others(
    kind: str, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ours, theirs = SOURCES["MADE"][kind](tmp_path / "source"), tmp_path / "ours", tmp_path / "theirs"
    assert run(kind, source, ours) == 0
    RULES[kind](ours / "files", "m2chat", source)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    questions = asked(kind, source)
    answers = [[canned(ask, 200) for ask in question.asks] for question in questions]
    BENCHMARKS[kind].write(outputs, "theirs", zip(questions, answers, strict=True))
    assert run(kind, source, theirs, "--outputs", outputs, "--name", "theirs") == 0
    metrics, protocol = read_results(theirs / "scores/results.json")
    assert protocol["stage"] == "theirs" and metrics["clip_i"].n == sum(len(item.asks) for item in questions) * (
        2 if kind == "isg" else 1
    )
    if kind == "isg":
        assert metrics["structure"].value == 100.0, "text, picture, text, picture, text"
        assert read_results(ours / "scores/results.json")[0]["structure"].value == 0.0, "one picture at most"
    rows = [{row["id"]: row for row in read_predictions(folder / "scores")} for folder in (ours, theirs)]
    assert rows[0].keys() == rows[1].keys()
    capsys.readouterr()
    assert main(["eval", "compare", str(ours / "scores"), str(theirs / "scores")]) == 0
    assert ("structure" if kind == "isg" else "CLIP-I") in capsys.readouterr().out


def test_missing_pictures_are_told_before_anything_runs(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCES["MADE"]["opening"](tmp_path / "source")
    pictures = source.parent / "images"
    pictures.rename(tmp_path / "images")
    arguments = ("opening", source, tmp_path / "out", "--limit", "1", "--no-score")
    assert run(*arguments) == 2
    assert "2 of 2 pictures of the questions are missing, the first is" in capsys.readouterr().err
    assert run(*arguments, "--allow-missing") == 0
    assert "2 pictures of the questions were missing" in capsys.readouterr().out
    assert run("opening", source, tmp_path / "other", "--limit", "1", "--no-score", "--pictures", tmp_path) == 0
    assert "were missing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("opening", "{", "is no file of JSON lines"),
        ("opening", '{"a": 1}', "needs the fields total_uid, conversations, and has a; is it another benchmark?"),
        ("isg", '{"id": "../x", "Query": [], "Golden": []}', "becomes the name of a file"),
        ("wise", "[", "is not JSON"),
        ("wise", '[{"Prompt": "a", "prompt_id": 1}, {"Prompt": "b", "prompt_id": 1}]', "the question '1' comes twice"),
        ("mmie", '[{"id": "x", "question": [], "gt_answer": []}]', "contains none of SA, PBL, MSR"),
        ("geneval", "", "holds no questions"),
    ],
)
def test_files_of_another_form(kind: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        asked(kind, path)


def test_broken_pictures_of_answers_are_drawn_again(run: Any, tmp_path: Path) -> None:
    source, out = SOURCES["MADE"]["geneval"](tmp_path / "source"), tmp_path / "out"
    assert run("geneval", source, out, "--no-score", "--samples", "2", "--limit", "2") == 0
    before = pictures(out / "files")
    first, second = sorted((out / "answers/images").iterdir())
    first.write_bytes(first.read_bytes()[:50])  # the process was killed there
    second.unlink()
    assert run("geneval", source, out, "--no-score", "--samples", "2", "--limit", "2") == 0
    assert pictures(out / "files") == before and len(before) == 2


def test_absent_answers_are_stated_and_left_out(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = SOURCES["MADE"]["geneval"](tmp_path / "source"), tmp_path / "out"
    theirs = tmp_path / "theirs"
    for line, names in (("00000", ("1", "2")), ("00001", ("1",))):
        (theirs / line / "samples").mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8), "red").save(theirs / line / "samples" / f"{name}.png")
    assert run("geneval", source, out, "--outputs", theirs, "--samples", "3") == 0
    assert "3 of 6 answers are not in" in (printed := capsys.readouterr().out) and "the first: 00000/0002" in printed
    metrics, protocol = read_results(out / "scores/results.json")
    assert protocol["answers_absent"] == 3 and protocol["samples"]["n"] == 3
    assert metrics["pictures_missing"].value == 0 and metrics["clip_score"].n == 3
    assert run("geneval", source, tmp_path / "one", "--outputs", theirs, "--samples", "1") == 0
    capsys.readouterr()
    assert main(["eval", "compare", str(out / "scores"), str(tmp_path / "one/scores")]) == 0
    assert "A has 3 samples and B 2: the 2 that both have are compared" in capsys.readouterr().out


def test_questions_that_cannot_be_asked_are_left_out_by_reason(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCES["MADE"]["isg"](tmp_path / "source")
    rows = [json.loads(line) for line in (source / "ISG-Bench.jsonl").read_text().splitlines()]
    rows[0]["Query"].append({"type": "video", "content": "a.mp4"})
    rows[1]["Query"] = [{"type": "image", "content": "gone.png"}]
    (source / "ISG-Bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("isg", source, tmp_path / "out", "--no-score", "--allow-missing") == 0
    printed = capsys.readouterr().out
    assert "1 questions cannot be asked and are left out: an item of type 'video'" in printed
    assert "1 questions cannot be asked and are left out: a message of nothing but missing pictures" in printed
    (row,) = (tmp_path / "out/files/output/m2chat.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "0002"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-images", "0"), "--max-images '0': choose a whole number from 1 to 16"),
        (("--max-new-tokens", "0"), "--max-new-tokens '0': choose a whole number from 1"),
        (("--image", "never"), "--image never: GenEval itself decides where pictures are due"),
    ],
)
def test_options_that_change_nothing_or_cannot_be(
    option: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCES["MADE"]["geneval"](tmp_path / "source")
    assert main(["bench", "geneval", str(source), str(tmp_path / "out"), *option]) == 2
    assert message in capsys.readouterr().err


def test_kinds_of_the_command_are_all() -> None:
    assert bench.KINDS == tuple(BENCHMARKS)
