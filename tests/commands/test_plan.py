"""`m2chat plan`, on the micro configurations: the paper's take longer and are the same code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from m2chat.commands import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plan(*arguments: str) -> int:
    return main(["plan", "--config", *arguments])


def test_a_training_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("configs/stage1.yaml", "--devices", "2", "--data.batch_size=4") == 0
    out = capsys.readouterr().out
    assert "Each of 2 GPUs, 4 samples" in out and "taken to be" not in out
    rows = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("|")}
    assert "504,128" in rows["M³Adapter"] and "504,128" in rows["together"]
    assert "yes" in rows["fits"] and "24 and more" in rows["fits cards of, GB"] and "GPU-hours of 32,000 samples" in out
    assert "Memory of the computer: " in out and "What would make it fit" not in out


def test_stage_1_from_a_feature_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("configs/stage1.yaml", "--features", "--data.batch_size=4") == 0
    out = capsys.readouterr().out
    found = re.search(r"From a feature cache: ([\d.]+) of ([\d.]+) TFLOP a sample, so at most ([\d.]+) times", out)
    assert found and 1.4 < float(found[3]) < 2.5
    rows = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("|")}
    assert "UNet" in rows and "M³Adapter" in rows
    assert not {"language model", "vision encoder", "visual query", "text encoder 1"} & rows.keys()


def test_what_would_make_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("configs/stage2.yaml", "--memory", "3.1", "--data.batch_size=8") == 0
    out = capsys.readouterr().out
    assert "What would make it fit 3.1 GB:" in out
    assert "- data.batch_size 1 instead of 8" in out and ", which fits" in out


def test_the_largest_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("configs/stage2.yaml", "--memory", "4", "--micro-batch", "auto") == 0
    assert "yes" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| fits"))


def test_generation(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("configs/eval_mmdialog.yaml") == 0
    out = capsys.readouterr().out
    assert all(f"| {mode}" in out for mode in ("high", "balanced", "low")) and "not measured" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("configs/stage1.yaml", "--gpu", "tpu"), "--gpu tpu: choose one of a10, a100, a100-40, a100-pcie"),
        (("configs/eval_coco.yaml", "--config", "configs/rows/sdxl.yaml"), "DiffusersModule cannot be planned"),
        (("configs/stage1.yaml", "--micro-batch", "many"), "--micro-batch many: give a number of samples, or 'auto'"),
        (("configs/stage1.yaml", "--micro-batch", "auto", "--memory", "1"), "one sample needs"),
        (("configs/stage1.yaml", "--data.batchsize=4"), "Did you mean 'data.batch_size'?"),
        (("configs/nothing.yaml",), "nothing.yaml"),
        (("configs/stage2.yaml", "--features"), "trains M3FTModule, and only stage 1"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*arguments) == 2
    assert message in capsys.readouterr().err


def test_other_commands_take_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--data.batch_size=4"]) == 2
    assert "'--data.batch_size=4' is no argument here" in capsys.readouterr().err
