"""What a computer with little memory refuses: before anything heavy is imported, and before a network is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from bases import large_llama, script

ROOT = Path(__file__).parents[1]
MICRO = ROOT / "data/micro"
HEAVY = ("lightning", "transformers", "diffusers", "torchvision", "torchao")
CHILD = f"""
import json, sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
from m2chat import cli, commands
for name, arguments in json.loads(sys.argv[1]):
    print(json.dumps((cli if name == "lightning" else commands).main(arguments)), flush=True)
    print("<end>", file=sys.stderr, flush=True)
"""
"""Runs commands one after the other, without what takes seconds to import."""


def test_what_does_not_fit_is_refused_within_a_gigabyte_and_without_heavy_imports(tmp_path: Path) -> None:
    large = large_llama(tmp_path / "llama", 2048, 19)
    assert (large / "model.safetensors").stat().st_size > 2.5e9
    broken = Path(shutil.copytree(MICRO / "sdxl", tmp_path / "sdxl", ignore=shutil.ignore_patterns("*.sha256")))
    next((broken / "unet").glob("*.safetensors")).unlink()
    mute = Path(shutil.copytree(MICRO / "sdxl", tmp_path / "mute", ignore=shutil.ignore_patterns("*.sha256")))
    shutil.rmtree(mute / "tokenizer_2")
    (mute / "tokenizer_2").mkdir()
    half = Path(shutil.copytree(large, tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors")))
    micro = yaml.safe_load((ROOT / "configs/backbone/micro.yaml").read_text())
    for name, folder in (("large", large), ("half", half)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**micro, "language_model": str(folder)}))
    (tmp_path / "image_tokens.yaml").write_text("data: {num_image_tokens: 4}")
    (tmp_path / "seed.yaml").write_text("data: {seed: 5}")
    draw, fit = ["draw", "a cat", "--model", "micro"], ["fit", "--config", "configs/stage1.yaml"]
    backbone = "--model.init_args.backbone"
    shipped = "data/micro/m2chat/m3ft.ckpt"
    calls = {
        "trained on another backbone.language_model": [*draw, "--backbone", f"{tmp_path}/large.yaml"],
        "has no weights (*.safetensors": [*draw, "--backbone", f"{tmp_path}/half.yaml"],
        "unet has no weights": [*draw, "--decoder", str(broken)],
        "tokenizer_2 lacks vocab.json and merges.txt": [*draw, "--decoder", str(mute)],
        "torchao, which is not installed": [*draw, "--memory", "balanced"],
        "--device cuda:7: ": [*draw, "--device", "cuda:7"],
        "'opanai' is neither a file nor weights": [
            *fit, backbone, f"{tmp_path}/large.yaml", f"{backbone}.vision_encoder=ViT-L-14-quickgelu:opanai",
        ],
        "adapter='gone.pth': there is no such": [*fit, f"{backbone}.adapter", "gone.pth"],
        f"data.num_image_tokens=4: it always has the value of {backbone[2:]}.num_image_tokens (here 8): set that": [
            *fit, "--config", f"{tmp_path}/image_tokens.yaml",
        ],
        "data.seed=5: it always has the value of seed_everything (here 0): set": [
            *fit, "--config", f"{tmp_path}/seed.yaml",
        ],
        f"image_decoder={str(mute)!r}: ": [*fit, f"{backbone}.image_decoder", str(mute)],
        "val 'x': path='gone' names no file": [
            "validate", "--config", "configs/stage1.yaml", "--data.val", "[{name: x, path: gone}]",
        ],
        "checkpoint of stage 'm3ft'": [*fit, "--ckpt_path", shipped],
        f"--ckpt_path {shipped} was trained on another": [
            "fit", "--config", "configs/stage2.yaml", backbone, f"{tmp_path}/large.yaml", "--ckpt_path", shipped,
        ],
    }  # fmt: skip
    commands = [["m2chat" if call[0] == "draw" else "lightning", call] for call in calls.values()]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(commands)], text=True, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    peaks = script("scripts/true_size.py").Peaks(process.pid, alone=True)
    out, errors = process.communicate()
    most, _ = peaks.stop()
    assert out.split() == ["2"] * len(calls), errors
    for expected, found in zip(calls, errors.split("<end>\n"), strict=False):
        assert expected in found and found.startswith("error: ") and found.count("\n") == 1
    assert 0.05e9 < most < 1e9  # bytes that the process has to itself
