"""The benchmark for one GPU, as far as it goes without one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_measurement_runs_on_the_micro_model(benchmark: Any, tmp_path: Path) -> None:
    arguments = ["--scale", "micro", "--device", "cpu", "--rounds", "1", "--warm-up", "0"]
    found = benchmark.main([*arguments, "--out", str(tmp_path / "gpu.json")])
    assert (tmp_path / "gpu.json").is_file() and "no speed" in found["device"]
    assert 0 < found["bf16_against_fp32"]["gradient_relative_error"] < 0.1
    for name in benchmark.TRAINING:
        assert found[name]["samples_per_s"] > 0 and found[name]["mfu"] is None
    assert found["stage1-256-cached"]["useful_tflop_a_sample"] <= found["stage1-256"]["useful_tflop_a_sample"]
    assert found["image"]["seconds"] > 0 and found["text"]["tokens_per_s"] > 0


def test_without_a_gpu_the_arithmetic_remains(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.main(["stage1-256", "--device", "meta", "--out", str(tmp_path / "gpu.json")])
    cached, whole = found["stage1-256-cached"], found["stage1-256"]
    assert cached["useful_tflop_a_sample"] == pytest.approx(0.881, rel=0.01)
    assert cached["roofline_samples_per_s"] == pytest.approx(1123, rel=0.01)
    # The empty picture is looked at once a batch, not once a sample.
    assert cached["useful_tflop_a_sample"] < whole["useful_tflop_a_sample"] == pytest.approx(2.54, rel=0.015)
    assert "samples_per_s" not in cached and "bf16_against_fp32" not in found
