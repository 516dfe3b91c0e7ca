from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2chat.commands import main
from m2chat.commands.evaluation import folder
from m2chat.commands.evaluation.folder import read_folder
from m2chat.commands.evaluation.run import Runner, clear
from m2chat.data.images import load_image
from m2chat.errors import UserError
from m2chat.evaluation.journal import Journal, known_replies
from m2chat.evaluation.predictions import prediction_row, read_predictions, write_images, write_predictions
from m2chat.evaluation.results import read_results, write_results
from m2chat.evaluation.rows import RunFolders, read_rows
from m2chat.evaluation.statistics import Estimate
from m2chat.files import locked
from m2chat.pipeline.inputs import as_pixels
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import render, scenes_of_split

ROOT = Path(__file__).parents[2]
ROWS = {row.name: row for row in read_rows(ROOT / "configs")}
SCENES = scenes_of_split("test", 1)[:6]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """What another system left: six pictures, one of them missing."""
    lines = []
    for index, scene in enumerate(SCENES):
        for name in ("drawn", "true"):
            Image.fromarray(render(scene)).save(tmp_path / f"{name}{index}.png")
        image = f"drawn{index}.png" if index else None
        row = {"id": f"s{index}", "prompt": caption_of(scene), "image": image, "reference_image": f"true{index}.png"}
        lines.append(json.dumps(row))
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_another_systems_pictures_are_scored_as_ours(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    assert main(["eval", "folder", str(outputs), str(out), "--config", "configs/eval_coco.yaml", "--name", "Emu"]) == 0
    metrics, protocol = read_results(out / "results.json")
    assert (protocol["stage"], protocol["dataset"], protocol["samples"]["n"]) == ("Emu", "coco", 6)
    assert metrics["pictures_missing"].value == 1 and metrics["all_right"].value == 100.0
    assert metrics["clip_i"].value == pytest.approx(100.0, abs=1e-3) and metrics["clip_score"].n == 5
    assert (out / "report.html").is_file() and "paper: 29.87" in capsys.readouterr().out
    assert main(["eval", "folder", str(outputs), str(out), "--config", "configs/eval_coco.yaml"]) == 2
    assert "holds an evaluation already" in capsys.readouterr().err

    # The same samples by id, their reference from that evaluation.
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"id": "s1", "image": "drawn2.png"}) + "\n")
    again = ["eval", "folder", str(few), str(tmp_path / "two"), "--config", "configs/eval_coco.yaml"]
    assert main([*again, "--reference", str(out)]) == 0
    metrics, _ = read_results(tmp_path / "two" / "results.json")
    assert metrics["pictures_missing"].value == 5 and metrics["all_right"].value == 0.0
    assert main(["eval", "compare", str(out), str(out), "--pictures"]) == 0
    printed = capsys.readouterr().out
    assert "not significant" in printed and "| pictures right, %: of a, where b is right | 100.00 |" in printed
    assert main(["eval", "page", str(out), "--beside", f"again={tmp_path / 'two'}"]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "theirs.jsonl:1 is not JSON"),
        ('{"id": 1}', "needs the keys id and prompt"),
        ('{"id": 1, "prompt": "a", "image": "nowhere.png"}', "nowhere.png cannot be read"),
        ('{"id": 1, "prompt": "a", "kind": "poem"}', "kind 'poem'"),
        ("", "holds no line"),
        ('{"id": ["x"], "prompt": "a"}', 'the id is ["x"]: write a text or a whole number'),
        ('{"id": "\\ud83d", "prompt": "a"}', "half of a surrogate pair"),
        ('{"id": 1, "prompt": NaN}', "prompt is NaN, no text"),
        ('{"id": 1, "prompt": "a", "image": 5}', "image is 5, no text"),
        ('{"id": 1, "prompt": "a", "image": "\\u0000.png"}', "cannot be read"),
        ('{"id": 1, "prompt": "a", "text": ["x"]}', 'text is ["x"], no text'),
        ('{"id": 1, "prompt": "a", "reference_text": 0}', "reference_text is 0, no text"),
        ('{"id": 1, "prompt": "a", "request": {}}', "request is {}, no text"),
        ('{"id": 1, "prompt": "a", "parts": [{"image": 5}]}', "parts: image is 5, no text"),
        ('{"id": 1, "prompt": "a", "parts": [{"text": 5}]}', "parts: text is 5, no text"),
        ('{"id": 1, "prompt": "a", "parts": [{"image": null, "caption": 5}]}', "parts: caption is 5, no text"),
    ],
)
def test_bad_lines_are_named(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.jsonl").write_text(line + "\n")
    monkeypatch.setattr(folder, "metrics_of", lambda config: ([], ""))  # they take a second to build
    arguments = ["eval", "folder", str(tmp_path / "theirs.jsonl"), str(tmp_path / "out")]
    assert main([*arguments, "--config", "configs/eval_coco.yaml"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "has no list trainer.callbacks"),
        ("trainer: [\n", "is not YAML: "),
        ("trainer: {callbacks: 5}\n", "has no list trainer.callbacks"),
        ("trainer: {callbacks: [5]}\n", "trainer.callbacks cannot be built"),
        ("trainer: {callbacks: []}\n", "names no metrics"),
    ],
)
def test_a_configuration_of_another_shape_is_named(
    text: str, message: str, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    arguments = ["eval", "folder", str(outputs), str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_has_no_reference_is_undefined(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    outputs.write_text(json.dumps({"id": "a", "prompt": "a red square", "image": "drawn1.png", "kind": "dialogue"}))
    out = tmp_path / "out"
    assert main(["eval", "folder", str(outputs), str(out), "--config", "configs/eval_mmdialog.yaml"]) == 0
    metrics, _ = read_results(out / "results.json")
    names = ("mm_relevance", "mm_relevance_precision", "mm_relevance_recall", "inter_rel", "clip_i", "rouge_l")
    assert all(np.isnan(metrics[name].value) for name in names) and metrics["clip_score"].n == 1
    # One sample has no interval; what is no prediction is named; a folder is no results.json.
    capsys.readouterr()
    assert main(["eval", "compare", str(out), str(out)]) == 2
    assert "share 1 sample: an interval needs at least 2" in capsys.readouterr().err
    assert main(["report", str(out)]) == 2
    assert "is a folder: name the results.json" in capsys.readouterr().err
    for line, message in (
        ("[1]", "row 1 is no object but list"),
        ('{"id": "a"}', "row 1 lacks "),
        ('{"id": "a", "scores": 5}', "row 1 "),
    ):
        (out / "predictions.jsonl").write_text(line + "\n")
        for command in (["compare", str(out), str(out)], ["page", str(out)]):
            assert main(["eval", *command]) == 2
            assert message in capsys.readouterr().err


def test_an_empty_comparison_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(tmp_path, [{"id": name, "scores": {}} for name in "ab"])
    assert main(["eval", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no metric has values of at least 2 samples" in capsys.readouterr().err


def test_replies_of_several_texts_and_pictures(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    expected = ["First.", {"image": "true1.png", "caption": caption_of(SCENES[1])}, "Then", "the second.",
                {"image": "true2.png", "caption": caption_of(SCENES[2])}, "The end."]  # fmt: skip
    whole = [
        "First.",
        {"image": "drawn1.png"},
        {"text": "Then the second.", "image": "drawn2.png"},
        {"text": "The end."},
    ]
    swapped = ["First.", {"image": "drawn2.png"}, {"image": None}]
    rows = [{"id": name, "reference_parts": expected, "parts": parts} for name, parts in (("w", whole), ("s", swapped))]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = read_folder(path, None)
    assert [(item.answer, item.caption) for item in good.reference.segments] == [
        ("First.", caption_of(SCENES[1])), ("Then", None), ("the second.", caption_of(SCENES[2])), ("The end.", None)
    ]  # fmt: skip
    assert [item.answer for item in good.generated.segments] == ["First.", "Then the second.", "The end."]
    assert [item.caption for item in bad.generated.segments] == ["First.", "First."] and bad.generated.images[1] is None
    arguments = ["--config", "configs/eval_mmdialog.yaml"]
    assert main(["eval", "folder", str(path), str(tmp_path / "out"), *arguments]) == 0
    metrics, _ = read_results(tmp_path / "out" / "results.json")
    assert metrics["pictures_missing"].value == 1 and metrics["clip_score"].n == 3
    # The second sample shows the second picture in the place of the first.
    assert [row["scores"]["all_right"] for row in read_predictions(tmp_path / "out")] == [[False], [True, True]]
    inter_rel = {row["id"]: row["scores"]["inter_rel"] for row in read_predictions(tmp_path / "out")}
    assert inter_rel["w"] > inter_rel["s"]
    # The same replies beside the references of that evaluation, by id.
    path.write_text(json.dumps({"id": "s", "parts": whole}) + "\n")
    again = ["eval", "folder", str(path), str(tmp_path / "two"), *arguments, "--reference", str(tmp_path / "out")]
    assert main(again) == 0
    scores = {row["id"]: row["scores"] for row in read_predictions(tmp_path / "two")}
    assert scores["s"]["inter_rel"] == pytest.approx(inter_rel["w"]) and scores["w"]["pictures_missing"] == 2
    for parts, message in (("text", "write a list of texts"), ([5], "write a list of texts"), ([{}], "write a list")):
        path.write_text(json.dumps({"id": "s", "prompt": "a", "parts": parts}) + "\n")
        assert main(["eval", "folder", str(path), str(tmp_path / "three"), *arguments]) == 2
        assert message in capsys.readouterr().err
    path.write_text(json.dumps({"id": "s", "prompt": "a", "parts": ["b"], "text": "b"}) + "\n")
    with pytest.raises(UserError, match="a reply is one or the other"):
        list(read_folder(path, None))


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b", "\u2029\ufeff"])
def test_letters_that_some_take_for_line_ends(letter: str, tmp_path: Path) -> None:
    rows = [{"id": f"s{i}", "prompt": f"a red{letter}circle"} for i in range(2)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "theirs.jsonl").write_text("\ufeff" + text, encoding="utf-8", newline="")
    predictions = list(read_folder(tmp_path / "theirs.jsonl", None))
    assert [item.request for item in predictions] == [f"a red{letter}circle"] * 2
    # What is written from them is read again, and by the journal of an interrupted run.
    lines = [prediction_row(item, write_images(tmp_path, item)) for item in predictions]
    write_predictions(tmp_path, lines)
    assert [row["request"] for row in read_predictions(tmp_path)] == [f"a red{letter}circle"] * 2
    journal = Journal(tmp_path / "journal", 0, "hash")
    for line in lines:
        journal.add(line)
    assert sorted(known_replies(tmp_path / "journal", "hash")) == ["s0", "s1"]
    (tmp_path / "theirs.jsonl").write_bytes('{"id": "s0", "prompt": "café"}\n'.encode("cp1252"))
    with pytest.raises(UserError, match=r"is not UTF-8: save it as UTF-8 \(b'"):
        list(read_folder(tmp_path / "theirs.jsonl", None))


def test_pictures_are_seen_as_every_viewer_shows_them(tmp_path: Path) -> None:
    half = np.zeros((32, 32, 4), np.uint8)
    half[:, :16] = (255, 220, 0, 255)
    turned = Image.Exif()
    turned[0x0112] = 3
    deep = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    for name, pixels, options in (("t", half, {"exif": turned}), ("d", deep, {}), ("p", half, {})):
        picture = Image.fromarray(pixels)
        (picture.convert("P") if name == "p" else picture).save(tmp_path / f"{name}.png", **options)
    rows = [{"id": name, "prompt": "x", "image": f"{name}.png", "reference_image": f"{name}.png"} for name in "tdp"]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row, prediction in zip(rows, read_folder(tmp_path / "theirs.jsonl", None), strict=True):
        shown = load_image((tmp_path / row["image"]).read_bytes())
        for picture in (*prediction.generated.images, *prediction.reference.images):
            np.testing.assert_array_equal(picture, shown)
        with Image.open(tmp_path / row["image"]) as image:
            np.testing.assert_array_equal(as_pixels(image), shown)
    assert (load_image((tmp_path / "t.png").read_bytes())[0, 0] == 255).all()  # white, and turned by half
    with pytest.raises(UserError, match="mode F"):
        as_pixels(Image.new("F", (2, 2)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "d.png").read_bytes()[:-40])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(UserError, match="cannot be decoded"):
        as_pixels(image)


def test_moments_of_true_pictures(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "a.bmp").touch()
    assert main(["eval", "moments", str(outputs.parent), str(tmp_path / "real.npz")]) == 0
    assert "not decoded: 1 x .bmp" in capsys.readouterr().out
    with np.load(tmp_path / "real.npz") as moments:
        assert int(moments["n"]) == 12 and str(moments["extractor"]) == "data/micro/fid"


def result(path: Path, **values: float) -> None:
    metrics = {name: Estimate(value, 10, value - 1, value + 1) for name, value in values.items()}
    cost = {"stage": "m3ft", "samples": 1200, "seconds": 1800.0, "processes": 2, "device": "CPU (x)"}
    tasks = {"dialogue": "trained", "edit": "zero-shot"}
    protocol = {"dataset": "mmdialog", "tasks": tasks, "trainable_parameters": 1234567, "costs": [cost, cost]}
    write_results(path.parent, metrics, protocol)
    (path.parent / "results.json").rename(path)


def test_tables_say_what_was_run_and_whose_numbers_are_whose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for seed, value in enumerate((50.0, 52.0, 54.0)):
        result(tmp_path / "kept" / "m3ft" / f"seed_{seed}" / "eval_mmdialog.json", bleu_1=value, inter_rel=30.0)
    result(tmp_path / "kept" / "stage1" / "seed_0" / "eval_mmdialog.json", bleu_1=20.0)
    arguments = ["eval", "table", "--results", str(tmp_path / "kept"), "--logs", str(tmp_path / "none")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    part = text.partition("### Table 2")[2].partition("###")[0]
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in part.splitlines()[2:-1]}
    half = 4.303 * 2 / 3**0.5
    assert rows["M²Chat (M³FT)"][:2] == [f"52.00 ± {half:.2f} (3)", "paper: 6.98"]
    assert rows["M²Chat (stage 1 only)"][0] == "20.00 [19.00, 21.00] (1)"
    assert rows["VLM + SD finetune"][:2] == ["not run", "paper: 4.21"]
    cost = text.partition("### Table 3")[2].partition("###")[0]
    assert "1,234,567" in cost and "2,400" in cost and "2.00 h" in cost and "paper: 299M" in cost
    tasks = text.partition("### Trained or zero-shot")[2]
    assert "zero-shot" in tasks and "trained" in tasks
    assert "Emu (13B)" in text.partition("### Table 1")[2]

    into, plot = tmp_path / "results.md", tmp_path / "plot.svg"
    into.write_text("# Results\n\nby hand\n")
    assert main([*arguments, "--into", str(into), "--plot", str(plot)]) == 0
    assert into.read_text().count("by hand") == 1 and "52.00" in into.read_text()
    assert plot.read_text().startswith("<svg") and "not run" in plot.read_text()
    assert main([*arguments, "--format", "latex"]) == 0
    tex = capsys.readouterr().out
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 6 and r"$\pm$" in tex


class Calls(Runner):
    """Records the runs, and does them in miniature."""

    def _lightning(self, arguments: list[str], seed: int, folder: Path, weights: Path | None) -> None:
        self.seen.append((arguments[0], folder.relative_to(self.folders.logs.parent).as_posix(), weights))
        folder.mkdir(parents=True)
        if arguments[0] == "test":
            write_results(folder, {}, {})
        else:
            (folder / "checkpoints").mkdir()
            (folder / "config.yaml").write_text("trainer: {max_epochs: 2, max_steps: -1}\n")
            payload = {"m2chat": {}, "state_dict": {}, "epoch": 1, "global_step": 9}
            torch.save(payload, folder / "checkpoints" / "epoch=1.ckpt")


@pytest.fixture
def runner(tmp_path: Path) -> Calls:
    calls = Calls(RunFolders(tmp_path / "shared", tmp_path / "own"), tmp_path / "kept", ROOT / "configs")
    object.__setattr__(calls, "seen", [])
    return calls


def test_rows_are_run_once_and_share_their_stages(runner: Calls, tmp_path: Path) -> None:
    runner.row(ROWS["gate_off"], 1)
    stage_1 = tmp_path / "shared" / "seed_1" / "stage1"
    own = tmp_path / "own" / "seed_1" / "gate_off" / "stage2"
    assert runner.seen[:3] == [
        ("fit", "shared/seed_1/stage1", tmp_path / "shared" / "seed_1"),
        ("fit", "own/seed_1/gate_off/stage2", stage_1),
        ("test", "own/seed_1/gate_off/eval_mmdialog", own),
    ]
    assert (tmp_path / "kept" / "gate_off" / "seed_1" / "eval_edit.json").is_file()
    runner.seen.clear()
    runner.row(ROWS["gate_off"], 1)
    assert runner.seen == []
    runner.row(ROWS["gate_paper"], 1)
    assert [folder for kind, folder, _ in runner.seen if kind == "fit"] == ["own/seed_1/gate_paper/stage2"]


def test_what_a_stopped_run_has_left_is_cleared_unless_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    clear(folder)
    folder.mkdir()
    (folder / "config.yaml").touch()
    with locked(folder), pytest.raises(UserError, match="another process writes to"):
        clear(folder)
    assert (folder / "config.yaml").exists()
    clear(folder)
    assert not folder.exists()


def test_a_group_runs_its_evaluations_of_a_row(runner: Calls) -> None:
    runner.row(ROWS["gate_off"], 0, ROWS["gate_off"].evaluations(["seeds"]))
    assert [folder for kind, folder, _ in runner.seen if kind == "test"] == ["own/seed_0/gate_off/eval_context"]


def test_what_earlier_versions_have_run_is_taken(runner: Calls, tmp_path: Path) -> None:
    row = ROWS["stage1"]
    write_results(tmp_path / "shared" / "seed_0" / "eval_mmdialog_stage1", {}, {"from": "seed.sh"})
    runner.row(row, 0)
    assert not any(folder.endswith("eval_mmdialog") for _, folder, _ in runner.seen)
    kept = json.loads((tmp_path / "kept" / "stage1" / "seed_0" / "eval_mmdialog.json").read_text())
    assert kept["protocol"] == {"from": "seed.sh"}
    assert sum(kind == "test" for kind, *_ in runner.seen) == len(row.evaluations()) - 1
    write_results(
        tmp_path / "shared" / "seed_0" / "eval_mmdialog", {}, {"from": "seed.sh, of the row without settings"}
    )
    runner.row(ROWS["m3ft"], 0, ["eval_mmdialog"])
    kept = json.loads((tmp_path / "kept" / "m3ft" / "seed_0" / "eval_mmdialog.json").read_text())
    assert kept["protocol"] == {"from": "seed.sh, of the row without settings"}


def test_groups_of_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)

    def listed(*arguments: str) -> dict[str, str]:
        assert main(["eval", "rows", "--list", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line.rpartition("  ")[2] for line in lines}

    rows = listed()
    assert list(rows)[:6] == ["sd15", "sdxl", "vlm_sd", "stage1", "m3ft", "vlm_sd_caption"] and len(rows) == 16
    assert rows["m3ft"] == "coco, cc3m, mmdialog, story, edit, context"
    seeds = listed("--group", "seeds")
    assert list(seeds) == ["stage1", "m3ft", "gate_off", "blank", "decoder", "untrained"]
    assert (seeds["m3ft"], seeds["gate_off"]) == ("mmdialog, context, cc3m, coco", "context")
    assert list(listed("decoder")) == ["decoder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sd16"], "no row sd16; choose from sd15"),
        (["--group", "mane"], "--group mane: choose from main, ablation, seeds"),
        (["--configs", "docs"], "no rows/*.yaml in it"),
    ],
)
def test_an_unknown_row_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["eval", "rows", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}\n", "new.yaml has no section `row`"),
        ("row: {title: New}\n", "row.groups: "),
        ("row: {title: New, groups: {mane: [eval_coco]}}\n", "row.groups.mane.[key]: "),
        ("row: {title: New, groups: {main: [eval_coco]}, trained: [stage1]}\n", "row.trained: "),
        ("row: {title: New, groups: {main: [eval_coco]}, compared_with: old}\n", "compared_with='old'; choose from"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "new.yaml").write_text(text)
    assert main(["eval", "rows", "--list", "--configs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
