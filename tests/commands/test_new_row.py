"""A new row of the tables: one YAML file, and a folder for its code."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from m2chat.commands import main
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parents[2]
ROW = """\
row:
  title: Grey pictures
  groups:
    main: [eval_coco]
model:
  class_path: grey_baseline.module.GreyModule
"""
MODULE = '''\
"""A baseline that draws a grey picture of every caption."""

import numpy as np
from lightning import LightningModule

from m2chat.models.config import BackboneConfig
from m2chat.batch import Batch
from m2chat.schema import Prediction, Reply, Segment
from m2chat.training.config import EvalConfig


class GreyModule(LightningModule):
    def __init__(
        self, backbone: BackboneConfig | None = None, evaluation: EvalConfig | None = None, seed: int = 0
    ) -> None:
        super().__init__()

    def test_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        predictions = []
        for sample, turn in zip(batch.samples, batch.turns):
            image = sample.images[-1]
            segments = (Segment("", image.caption),)
            grey = np.full_like(image.pixels, 128)
            reference, generated = Reply(segments, (image.pixels,)), Reply(segments, (grey,))
            name = f"{sample.id}#{turn}"
            predictions.append(Prediction(name, sample.kind, sample.source, image.caption, reference, generated))
        return predictions
'''


def test_a_baseline_is_one_file_and_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(ROOT / "data/micro/shards")
    (tmp_path / "data").symlink_to(ROOT / "data")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "rows" / "grey.yaml").write_text(ROW, encoding="utf-8")
    (tmp_path / "grey_baseline").mkdir()
    (tmp_path / "grey_baseline" / "module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT / "src"))))

    run = ["eval", "rows", "grey", "--lightning", f"{sys.executable} -m m2chat.cli", "--results", "kept"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    assert main([*run, "--extra", "--data.test_samples=4", *quiet]) == 0
    assert (tmp_path / "kept" / "grey" / "seed_0" / "eval_coco.json").is_file()
    capsys.readouterr()

    assert main(["eval", "table", "--results", "kept", "--logs", "none"]) == 0
    tables = capsys.readouterr().out
    first = tables.partition("### Table 1")[2].partition("###")[0]
    (cells,) = [line.split("|") for line in first.splitlines() if "Grey pictures" in line]
    assert cells[2].strip().endswith("(1)") and cells[4].strip() == "not run"
    assert "Grey pictures" not in tables.partition("### Table 2")[2].partition("###")[0]
