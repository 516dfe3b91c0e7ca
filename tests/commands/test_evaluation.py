from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2chat.commands import main
from m2chat.commands.evaluation.rows import ROWS
from m2chat.commands.evaluation.run import Runner, _clear
from m2chat.errors import UserError
from m2chat.evaluation.results import read_results, write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.files import locked
from m2chat.world import caption_of, render, scenes_of_split

ROOT = Path(__file__).parents[2]
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
    assert main([*again, "--truth", str(out)]) == 0
    metrics, _ = read_results(tmp_path / "two" / "results.json")
    assert metrics["pictures_missing"].value == 5 and metrics["all_right"].value == 0.0
    assert main(["eval", "compare", str(out), str(out)]) == 0
    assert "not significant" in capsys.readouterr().out
    assert main(["eval", "page", str(out), "--beside", f"again={tmp_path / 'two'}"]) == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "theirs.jsonl:1 is not JSON"),
        ('{"id": 1}', "needs the keys id and prompt"),
        ('{"id": 1, "prompt": "a", "image": "nowhere.png"}', "nowhere.png cannot be read"),
        ('{"id": 1, "prompt": "a", "kind": "poem"}', "kind 'poem'"),
    ],
)
def test_bad_lines_are_named(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "theirs.jsonl").write_text(line + "\n")
    arguments = ["eval", "folder", str(tmp_path / "theirs.jsonl"), str(tmp_path / "out")]
    assert main([*arguments, "--config", "configs/eval_coco.yaml"]) == 2
    assert says in capsys.readouterr().err


def test_moments_of_true_pictures(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["eval", "moments", str(outputs.parent), str(tmp_path / "real.npz")]) == 0
    with np.load(tmp_path / "real.npz") as found:
        assert int(found["n"]) == 12 and str(found["extractor"]) == "data/micro/fid"


def result(path: Path, **values: float) -> None:
    metrics = {name: Estimate(value, 10, value - 1, value + 1) for name, value in values.items()}
    cost = {"stage": "m3ft", "samples": 1200, "seconds": 1800.0, "processes": 2, "device": "CPU (x)"}
    tasks = {"dialogue": "trained", "edit": "zero-shot"}
    protocol = {"dataset": "mmdialog", "tasks": tasks, "trainable_parameters": 1234567, "costs": [cost, cost]}
    write_results(path.parent, metrics, protocol)
    (path.parent / "results.json").rename(path)


def test_tables_say_what_was_run_and_whose_numbers_are_whose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    """Writes down what would be run, and does it in miniature."""

    def _lightning(self, arguments: list[str], seed: int, folder: Path, root: Path | None) -> None:
        self.seen.append((arguments[0], folder.relative_to(self.own.parent).as_posix(), root))
        folder.mkdir(parents=True)
        if arguments[0] == "test":
            write_results(folder, {}, {})
        else:
            (folder / "checkpoints").mkdir()
            (folder / "config.yaml").write_text("trainer: {max_epochs: 2, max_steps: -1}\n")
            payload = {"m2chat": {}, "state_dict": {}, "epoch": 1, "global_step": 9}
            torch.save(payload, folder / "checkpoints" / "epoch=1.ckpt")


def test_rows_are_run_once_and_share_their_stages(tmp_path: Path) -> None:
    runner = Calls(tmp_path / "shared", tmp_path / "own", tmp_path / "kept")
    object.__setattr__(runner, "seen", [])
    rows = {row.name: row for row in ROWS}
    runner.row(rows["gate_off"], 1)
    stage_1 = tmp_path / "shared" / "seed_1" / "stage1"
    own = tmp_path / "own" / "seed_1" / "gate_off" / "stage2"
    assert runner.seen[:3] == [
        ("fit", "shared/seed_1/stage1", tmp_path / "shared" / "seed_1"),
        ("fit", "own/seed_1/gate_off/stage2", stage_1),
        ("test", "own/seed_1/gate_off/eval_mmdialog", own),
    ]
    assert (tmp_path / "kept" / "gate_off" / "seed_1" / "eval_edit.json").is_file()
    runner.seen.clear()
    runner.row(rows["gate_off"], 1)
    assert runner.seen == []
    runner.row(rows["gate_paper"], 1)
    assert [folder for kind, folder, _ in runner.seen if kind == "fit"] == ["own/seed_1/gate_paper/stage2"]


def test_what_a_stopped_run_has_left_is_cleared_unless_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    _clear(folder)
    folder.mkdir()
    (folder / "config.yaml").touch()
    with locked(folder), pytest.raises(UserError, match="another process writes to"):
        _clear(folder)
    assert (folder / "config.yaml").exists()
    _clear(folder)
    assert not folder.exists()


def test_what_seed_sh_has_run_is_taken(tmp_path: Path) -> None:
    runner = Calls(tmp_path / "shared", tmp_path / "own", tmp_path / "kept")
    object.__setattr__(runner, "seen", [])
    row = next(row for row in ROWS if row.name == "stage1")
    write_results(tmp_path / "shared" / "seed_0" / "eval_mmdialog_stage1", {}, {"from": "seed.sh"})
    runner.row(row, 0)
    assert not any(folder.endswith("eval_mmdialog") for _, folder, _ in runner.seen)
    kept = json.loads((tmp_path / "kept" / "stage1" / "seed_0" / "eval_mmdialog.json").read_text())
    assert kept["protocol"] == {"from": "seed.sh"}
    assert sum(kind == "test" for kind, *_ in runner.seen) == len(row.tests) - 1


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "rows", "sd16"]) == 2
    assert "no row sd16; choose from sd15" in capsys.readouterr().err
