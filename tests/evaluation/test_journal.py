from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.evaluation.journal import Journal, known_replies
from m2chat.evaluation.results import prediction_row, write_images, write_predictions, write_results
from m2chat.schema import Prediction


def rows_of(folder: Path, make: Callable[..., Prediction], count: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    predictions = [make(f"s{k}#1", rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), gate=[0.5]) for k in range(count)]
    return [prediction_row(item, write_images(folder, item)) for item in predictions]


def test_replies_come_back_from_all_ranks(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    rows = rows_of(tmp_path, make_prediction, 4)
    for rank in range(2):
        journal = Journal(tmp_path, rank, "abc")
        for row in rows[rank::2]:
            journal.add(row)
    known = known_replies(tmp_path, "abc")
    assert sorted(known) == ["s0#1", "s1#1", "s2#1", "s3#1"]
    reply, note = known["s2#1"]
    assert reply.segments[0].answer == "look !" and reply.segments[0].caption == "a red circle"
    assert reply.images[0] is not None and reply.images[0].shape == (8, 8, 3) and note["gate"] == [0.5]


def test_what_was_cut_off_is_generated_again(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    rows = rows_of(tmp_path, make_prediction, 3)
    journal = Journal(tmp_path, 0, "abc")
    for row in rows:
        journal.add(row)
    text = journal.path.read_text()
    journal.path.write_text(text[: len(text) - 40])
    (tmp_path / rows[0]["generated"][0]["image"]).write_bytes(b"half a picture")  # type: ignore[index]
    assert list(known_replies(tmp_path, "abc")) == ["s1#1"]


def test_other_settings_are_refused(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    Journal(tmp_path, 0, "abc")
    with pytest.raises(UserError, match="other settings or weights"):
        known_replies(tmp_path, "def")
    with pytest.raises(UserError, match="holds no predictions"):
        known_replies(tmp_path / "empty", "abc")


def test_a_finished_evaluation_serves_too(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    write_predictions(tmp_path, rows_of(tmp_path, make_prediction, 2))
    write_results(tmp_path, {}, {"generation": "abc"})
    assert len(known_replies(tmp_path, "abc")) == 2
    assert json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[1])["number"] == 1
