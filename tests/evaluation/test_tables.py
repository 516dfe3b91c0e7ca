from __future__ import annotations

from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.evaluation.markup import markdown, write_section
from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.evaluation.results import write_results
from m2chat.evaluation.rows import RunFolders, TableRow
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.tables import every_metric
from m2chat.schema import Prediction, Reply, Segment
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import Scene, render, scenes_of_split

PLAIN = TableRow("plain", None, "Plain", {"seeds": ("eval_mmdialog",)}, seeds=(0, 1, 2))
CONTROL = TableRow(
    "control", Path("control.yaml"), "Control", {"seeds": ("eval_mmdialog",)}, seeds=(0,), compared_with="plain"
)


def put(root: Path, seed: int, score: float, row: str = "plain", **protocol: object) -> None:
    metrics = {"bleu_1": Estimate(score, 10), "undefined": Estimate(float("nan"), 0)}
    folder = root / row / f"seed_{seed}"
    written = write_results(folder, metrics, {"dataset": "mmdialog", "stage": "m3ft", **protocol})
    written.rename(folder / "eval_mmdialog.json")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, score in enumerate((10.0, 12.0, 17.0)):
        put(tmp_path, seed, score)
    return tmp_path


def text_of(root: Path, *rows: TableRow, seeds: tuple[int, ...] | None = None) -> str:
    return markdown(every_metric(rows, root, RunFolders(root / "logs", root / "logs" / "rows"), seeds), ["notes"])


def test_mean_and_spread(root: Path) -> None:
    text = text_of(root, PLAIN)
    row = next(line for line in text.splitlines() if line.startswith("| BLEU-1"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["BLEU-1", "13.00", "3.61", "10.00 ... 17.00", "0 1 2", "paper: 6.98", "bleu_1"]
    assert "### eval_mmdialog\n\nstage m3ft, dataset mmdialog\n" in text and "undefined" not in text


def test_seeds_are_the_rows_default_or_chosen(root: Path) -> None:
    put(root, 3, 100.0)
    assert "| 13.00 |" in text_of(root, PLAIN)
    assert "| 17.00 | -" in text_of(root, PLAIN, seeds=(2,))


def test_a_row_that_was_not_run_reads_so(root: Path) -> None:
    text = text_of(root, PLAIN, CONTROL)
    assert "not run" in text.partition("### eval_mmdialog_control")[2] and " against " not in text


def test_different_protocols_are_not_averaged(root: Path) -> None:
    put(root, 1, 1.0, guidance=7.0)
    with pytest.raises(UserError, match=r"guidance is 7\.0"):
        text_of(root, PLAIN)


def evaluation(folder: Path, drawn: Scene) -> None:
    """An evaluation of one caption, as `lightning test` leaves it."""
    asked = scenes_of_split("test", 1)[0]
    segments = (Segment("", caption_of(asked)),)
    reference, generated = Reply(segments, (render(asked),)), Reply(segments, (render(drawn),))
    prediction = Prediction("s0#1", "caption", "test", "draw", reference, generated)
    write_predictions(folder, [prediction_row(prediction, write_images(folder, prediction))])
    write_results(folder, {"bleu_1": Estimate(1.0, 1)}, {"dataset": "mmdialog"})


def test_rows_are_compared_picture_by_picture(root: Path) -> None:
    right, wrong = scenes_of_split("test", 1)[0], scenes_of_split("test", 1)[9]
    evaluation(
        root / "logs" / "seed_0" / "eval_mmdialog", right
    )  # where earlier versions kept the row without settings
    evaluation(root / "logs" / "rows" / "seed_0" / "control" / "eval_mmdialog", wrong)
    put(root, 0, 9.0, "control")
    part = text_of(root, PLAIN, CONTROL).partition("### eval_mmdialog against eval_mmdialog_control")[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "all_right" in line]
    shares = {row[-1]: (row[0], row[1]) for row in cells}
    assert shares["all_right_a"] == ("pictures right, %: a", "100.00")
    assert shares["all_right_b"] == ("pictures right, %: b", "0.00")


def test_only_our_section_of_the_file_changes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "docs" / "results.md"
    write_section(path, text_of(root, PLAIN), "seeds")
    first = path.read_text()
    path.write_text(first.replace("# Results", "# Results\n\nby hand") + "\n## Also by hand\n")
    put(root, 3, 13.0)
    write_section(path, text_of(root, PLAIN, seeds=(0, 1, 2, 3)), "seeds")
    text = path.read_text()
    assert "by hand" in text and text.endswith("\n## Also by hand\n")
    assert text.count("### eval_mmdialog") == 1 and "0 1 2 3" in text
    write_section(path, text_of(root, PLAIN, seeds=(0, 1, 2, 3)), "seeds")
    assert path.read_text() == text
