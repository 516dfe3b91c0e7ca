from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.evaluation.compare import compare, compare_pictures
from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.evaluation.results import write_results
from m2chat.evaluation.statistics import difference, estimate
from m2chat.metrics.text_overlap import bleu, bleu_statistics
from m2chat.schema import Prediction, Reply, Segment
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.scenes import render, scenes_of_split

RNG = np.random.default_rng(0)


def test_pairs_find_what_means_alone_would_not() -> None:
    hard = RNG.normal(50, 30, 200)  # samples differ by far more than models do
    better, same = hard + RNG.normal(2, 2, 200), hard + RNG.normal(0, 2, 200)
    results = difference("x", better, hard)
    assert results.significant and results.p < 0.01 and results.low < 2 < results.high
    half = 1.96 * (better - hard).std() / np.sqrt(200)
    assert (results.high - results.low) / 2 == pytest.approx(half, rel=0.15)
    other = difference("x", same, hard)
    assert not other.significant and other.p > 0.05


def test_equal_evaluations_do_not_differ() -> None:
    values = RNG.normal(size=30)
    results = difference("x", values, values)
    assert (results.low, results.high, results.p, results.significant) == (0.0, 0.0, 1.0, False)


def put(folder: Path, scores: list[dict[str, object]]) -> Path:
    write_predictions(folder, [{"id": f"s{k}", "scores": of_sample} for k, of_sample in enumerate(scores)])
    return folder


def test_metrics_of_two_folders(tmp_path: Path) -> None:
    good = {"clip": [0.5], "inter_rel": 40.0, "all_right": [True], "bleu_statistics": [3, 2, 3, 2, 3, 3]}
    bad = {"clip": [0.25], "inter_rel": None, "all_right": [False], "bleu_statistics": [1, 0, 3, 2, 3, 3]}
    a, b = put(tmp_path / "a", [good] * 8), put(tmp_path / "b", [bad] * 9)
    results = {item.metric: item for item in compare(a, b)}
    assert set(results) == {"bleu_1", "bleu_2", "clip", "all_right"}
    assert (results["clip"].first, results["clip"].second, results["clip"].n) == (50.0, 25.0, 8)
    assert results["bleu_1"].second == pytest.approx(100 / 3) and results["bleu_1"].significant
    with pytest.raises(UserError, match="same samples"):
        compare(a, put(tmp_path / "c", []))


def pictures(folder: Path, drawn: list[int], omitted_right: bool) -> Path:
    """An evaluation of four captions without the size; `drawn` names the scene of each generated picture."""
    scenes = [scene.with_attribute("size", "large") for scene in scenes_of_split("test", 1)[:4]]
    rows = []
    for index, other in enumerate(drawn):
        segments = (Segment("", caption_of(scenes[index], omit=["size"])),)
        shown = scenes[other] if omitted_right else scenes[other].with_attribute("size", "small")
        meta = {"scene": scenes[index].attributes, "omitted": ["size"]}
        prediction = Prediction(
            f"s{index}#1", "edit", "test", "draw", Reply(segments, (render(scenes[index]),)),
            Reply(segments, (render(shown),)), None, meta,
        )  # fmt: skip
        rows.append(prediction_row(prediction, write_images(folder, prediction)))
    write_predictions(folder, rows)
    return folder


def test_pictures_are_judged_again_side_by_side(tmp_path: Path) -> None:
    a = pictures(tmp_path / "a", [0, 1, 2, 0], omitted_right=True)
    b = pictures(tmp_path / "b", [0, 1, 3], omitted_right=False)
    results = {name: (share.value, share.n) for name, share in compare_pictures(a, b).items()}
    assert results["all_right_a"] == (100.0, 3) and results["all_right_b"] == (pytest.approx(200 / 3), 3)
    assert results["all_right_a_where_b"] == (100.0, 2)
    assert (results["omitted_a"][0], results["omitted_b"][0], results["omitted_difference"][0]) == (100.0, 0.0, 100.0)
    with pytest.raises(UserError, match="hold no pictures"):
        compare_pictures(a, put(tmp_path / "none", []))


def test_the_judge_is_that_of_the_recorded_world(tmp_path: Path) -> None:
    a = pictures(tmp_path / "a", [0], omitted_right=True)
    write_results(a, {}, {"world": "nowhere"})
    with pytest.raises(UserError, match="'nowhere' is no generated world"):
        compare_pictures(a, a)
    assert compare_pictures(a, a, "shapes")["all_right_a"].value == 100.0


def test_what_no_reference_can_have_is_not_compared(tmp_path: Path) -> None:
    one, two = bleu_statistics("yes", "yes"), bleu_statistics("a b", "a b")
    short = [put(tmp_path / name, [{"bleu_statistics": one}] * 3) for name in "ab"]
    assert [item.metric for item in compare(*short)] == ["bleu_1"]
    mixed = [put(tmp_path / name, [{"bleu_statistics": one}, {"bleu_statistics": two}]) for name in "cd"]
    _, pairs = compare(*mixed)  # half of the draws have no sample of two words
    assert (pairs.metric, pairs.low, pairs.high, pairs.significant) == ("bleu_2", 0.0, 0.0, False)
    assert pairs.first == pytest.approx(100.0)
    interval = estimate([one, two], partial(bleu, order=2))
    assert interval.value == pytest.approx(100.0) and (interval.low, interval.high) == pytest.approx((100.0, 100.0))
    assert np.isnan(estimate([one, one], partial(bleu, order=2)).low)
