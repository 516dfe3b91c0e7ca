from __future__ import annotations

from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.evaluation.results import write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.tables import collect, find_results, main, tables


def put(folder: Path, score: float, dataset: str = "mmdialog", **protocol: object) -> None:
    metrics = {"bleu_1": Estimate(score, 10), "undefined": Estimate(float("nan"), 0)}
    write_results(folder, metrics, {"dataset": dataset, "stage": "m3ft", **protocol})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, score in enumerate((10.0, 12.0, 17.0)):
        put(tmp_path / f"seed_{seed}" / "eval_mmdialog", score)
    return tmp_path


def test_mean_and_spread(root: Path) -> None:
    text = tables(root)
    row = next(line for line in text.splitlines() if line.startswith("| bleu_1"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["bleu_1", "13.00", "3.61", "10.00 ... 17.00", "0 1 2", "paper: 6.98"]
    assert "### eval_mmdialog" in text and "make seeds" in text and "undefined" not in text


def test_versions_are_no_names_and_the_newest_counts(tmp_path: Path) -> None:
    for version, score in ((10, 3.0), (2, 1.0), (9, 2.0)):
        put(tmp_path / "seed_0" / f"version_{version}", score)
    put(tmp_path / "other" / "version_0", 9.0)
    found = find_results(tmp_path)
    assert found == {"mmdialog": {0: tmp_path / "seed_0" / "version_10"}}
    assert "| 3.00 | -" in tables(tmp_path)


def test_different_protocols_are_not_averaged(root: Path) -> None:
    put(root / "seed_3" / "eval_mmdialog", 1.0, guidance=7.0)
    with pytest.raises(UserError, match=r"guidance is 7\.0"):
        collect("eval_mmdialog", find_results(root)["eval_mmdialog"])


def test_only_our_section_of_the_file_changes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "docs" / "results"
    main([str(root), str(out)])
    path = out.with_suffix(".md")
    first = path.read_text()
    path.write_text(first.replace("# Results", "# Results\n\nby hand") + "\n## Also by hand\n")
    put(root / "seed_3" / "eval_mmdialog", 13.0)
    main([str(root), str(path)])
    text = path.read_text()
    assert "by hand" in text and text.endswith("\n## Also by hand\n")
    assert text.count("### eval_mmdialog") == 1 and "0 1 2 3" in text
    main([str(root), str(path)])
    assert path.read_text() == text


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make seeds"):
        tables(tmp_path)
