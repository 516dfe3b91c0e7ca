from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.evaluation.markup import aligned
from m2chat.evaluation.names import metric_name
from m2chat.evaluation.page import kind_cells, metric_cells, report
from m2chat.evaluation.results import newest_results, read_results, write_results
from m2chat.evaluation.statistics import Estimate


def test_results_survive_the_file(tmp_path: Path) -> None:
    metrics = {
        "bleu_1": Estimate(12.5, 40, 10.0, 15.0),
        "fid_micro": Estimate(math.nan, 1),
        "loss": Estimate(0.5, None),
    }
    path = write_results(tmp_path, metrics, {"seed": 3, "steps": np.int64(20), "guidance": float("inf")})
    content = json.loads(path.read_text())
    assert content["metrics"]["bleu_1"] == {"value": 12.5, "n": 40, "low": 10.0, "high": 15.0}
    assert content["metrics"]["fid_micro"]["value"] is None
    assert content["protocol"] == {"seed": 3, "steps": 20, "guidance": None}
    metrics_read, protocol = read_results(path)
    assert metrics_read["bleu_1"] == metrics["bleu_1"]
    assert math.isnan(metrics_read["fid_micro"].value)
    assert metrics_read["loss"].n is None
    assert protocol["seed"] == 3
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(UserError, match="is no results"):
        read_results(tmp_path / "results.json")


def test_the_table_shows_the_paper_beside_ours() -> None:
    metrics = {"bleu_1": Estimate(50.0, 9, 40.0, 60.0), "fid_micro": Estimate(math.nan, 1)}
    lines = aligned(metric_cells(metrics, "mmdialog")["headline"]).splitlines()
    (ours,) = [line for line in lines if "BLEU-1" in line]
    assert "paper: 6.98" in ours and "40.00 ... 60.00" in ours
    assert len({len(line) for line in lines}) == 1
    assert "paper: 26.15" in aligned(metric_cells({"fid_micro": Estimate(1.0, 9)}, "cc3m")["headline"])
    assert "paper:" not in aligned(metric_cells({"bleu_1": Estimate(1.0, 9)}, "other")["headline"])


def test_kinds_stand_side_by_side() -> None:
    metrics = {
        "a": Estimate(1.0, 2),
        "a/edit": Estimate(2.0, 1),
        "a/story": Estimate(3.0, 1),
        "b/edit": Estimate(4.0, 1),
    }
    assert kind_cells(metrics) == [("metric", "edit", "story"), ("a", "2.00", "3.00"), ("b", "4.00", "")]
    assert kind_cells({"a": Estimate(1.0, 2)}) == []
    assert [row[0] for row in metric_cells(metrics)["control"]] == ["metric", "a"]


def test_results_come_before_controls_and_counts_are_whole() -> None:
    names = (
        "pictures_missing",
        "all_right",
        "all_right_oracle",
        "right_size",
        "inter_rel_not_finite",
        "fid_micro_n_real",
    )
    tables = metric_cells({name: Estimate(3.0, 450) for name in names})
    assert [[row[-1] for row in cells[1:]] for cells in tables.values()] == [
        ["all_right"], ["all_right_oracle", "right_size"],
        ["pictures_missing", "fid_micro_n_real", "inter_rel_not_finite"],
    ]  # fmt: skip
    assert list(tables) == ["headline", "control", "count"]
    assert all(row[1] == "3" for row in tables["count"][1:]) and tables["headline"][1][:2] == (
        "pictures right, %",
        "3.00",
    )


def test_every_metric_that_is_kept_has_a_plain_name() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results"
    kept = {name.partition("/")[0] for path in folder.glob("*/*/*.json") for name in read_results(path)[0]}
    assert kept and not [name for name in kept if not metric_name(name).meaning]


def test_the_report_finds_the_newest_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="lightning test"):
        newest_results(tmp_path)
    write_results(tmp_path / "version_0", {"clip_score": Estimate(21.0, 5)}, {"dataset": "coco", "steps": 20})
    (tmp_path / "version_0/images").mkdir()
    assert main(["report", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "paper: 29.87" in printed
    assert f"Pictures: {tmp_path / 'version_0/images'}" in printed
    assert f"tensorboard --logdir {tmp_path}" in printed
    assert "- steps: 20" in report(tmp_path / "version_0/results.json")
