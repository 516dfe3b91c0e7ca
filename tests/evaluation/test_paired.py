from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.evaluation.paired import difference, differences
from m2chat.evaluation.results import write_predictions

RNG = np.random.default_rng(0)


def test_pairs_find_what_means_alone_would_not() -> None:
    hard = RNG.normal(50, 30, 200)  # samples differ by far more than models do
    better, same = hard + RNG.normal(2, 2, 200), hard + RNG.normal(0, 2, 200)
    found = difference("x", better, hard)
    assert found.significant and found.p < 0.01 and found.low < 2 < found.high
    half = 1.96 * (better - hard).std() / np.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    other = difference("x", same, hard)
    assert not other.significant and other.p > 0.05


def test_equal_evaluations_do_not_differ() -> None:
    values = RNG.normal(size=30)
    found = difference("x", values, values)
    assert (found.low, found.high, found.p, found.significant) == (0.0, 0.0, 1.0, False)


def put(folder: Path, scores: list[dict[str, object]]) -> Path:
    write_predictions(folder, [{"id": f"s{k}", "scores": own} for k, own in enumerate(scores)])
    return folder


def test_metrics_of_two_folders(tmp_path: Path) -> None:
    good = {"clip": [0.5], "inter_rel": 40.0, "all_right": [True], "bleu_statistics": [3, 2, 3, 2, 3, 3]}
    bad = {"clip": [0.25], "inter_rel": None, "all_right": [False], "bleu_statistics": [1, 0, 3, 2, 3, 3]}
    a, b = put(tmp_path / "a", [good] * 8), put(tmp_path / "b", [bad] * 9)
    found = {item.metric: item for item in differences(a, b)}
    assert set(found) == {"bleu_1", "bleu_2", "clip", "all_right"}
    assert (found["clip"].first, found["clip"].second, found["clip"].n) == (50.0, 25.0, 8)
    assert found["bleu_1"].second == pytest.approx(100 / 3) and found["bleu_1"].significant
    with pytest.raises(UserError, match="same samples"):
        differences(a, put(tmp_path / "c", []))
