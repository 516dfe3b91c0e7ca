"""The benchmark for one GPU, as far as it goes without one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bases import script
from m2chat.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    module: ModuleType = script("benchmarks/gpu.py")
    return module


def test_every_measurement_runs_on_the_micro_model(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "STEPS", 2)
    parts = ["stage1-256-cached-config", "stage1-256-config", "stage2-config", "image", "text", "memory-high"]
    arguments = ["--scale", "micro", "--device", "cpu", "--rounds", "1", "--warm-up", "0"]
    found = benchmark.main([*parts, *arguments, "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == found and "no speed" in found["device"]
    assert 0 < found["bf16_against_fp32"]["gradient_relative_error"] < 0.1
    assert found.keys() >= set(parts)
    for name in parts[:3]:
        assert found[name]["samples_per_s"] > 0 and found[name]["mfu"] is None
    cached, whole = (found[f"stage1-256{kind}-config"]["useful_tflop_a_sample"] for kind in ("-cached", ""))
    assert cached < whole
    assert found["image"]["seconds"] > 0 and found["text"]["tokens_per_s"] > 0
    assert found["memory-high"]["seconds"] > 0 and found["memory-high"]["tokens_per_s"] > 0


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"

    def fail(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    def refuse(*_: Any) -> dict[str, Any]:
        assert "out_of_memory" in json.loads(out.read_text())["image"]  # written before the next one begins
        raise UserError("torchao is not installed")

    monkeypatch.setattr(benchmark.Bench, "check", lambda self: {})
    monkeypatch.setattr(benchmark.Bench, "image", fail)
    monkeypatch.setattr(benchmark.Bench, "text", lambda self: {"tokens_per_s": 1.0})
    monkeypatch.setattr(benchmark.Bench, "memory", refuse)
    found = benchmark.main(["image", "text", "memory-low", "--scale", "micro", "--device", "cpu", "--out", str(out)])
    assert found["image"] == {"out_of_memory": "CUDA out of memory. Tried to allocate 1 GiB"}
    assert found["text"] == {"tokens_per_s": 1.0}
    assert found["memory-low"] == {"not_possible": "torchao is not installed"}


def test_a_card_without_a_data_sheet_has_no_share_of_a_peak(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 NVL")
    bench = benchmark.Bench("micro", "cuda", 1, 0)
    assert bench.gpu is None and bench.share(1.0, bench.gpu) is None
    assert bench.generation()["image"]["roofline_s"] is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 PCIe")
    assert benchmark.Bench("micro", "cuda", 1, 0).gpu.flops == 756e12


@pytest.mark.slow
def test_without_a_gpu_the_arithmetic_remains(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.main(
        ["stage1-256-cached", "stage1-256-config", "--device", "meta", "--out", str(tmp_path / "gpu.json")]
    )
    cached, whole = found["stage1-256-cached"], found["stage1-256-config"]
    assert cached["useful_tflop_a_sample"] == pytest.approx(0.881, rel=0.01)
    assert cached["roofline_samples_per_s"] == pytest.approx(1123, rel=0.01)
    # The empty picture is looked at once a batch, not once a sample.
    assert cached["useful_tflop_a_sample"] < whole["useful_tflop_a_sample"] == pytest.approx(2.56, rel=0.015)
    assert "samples_per_s" not in cached and "bf16_against_fp32" not in found
