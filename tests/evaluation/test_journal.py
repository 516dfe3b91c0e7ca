from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.evaluation.compare import compare, compare_pictures
from m2chat.evaluation.journal import Journal, known_replies
from m2chat.evaluation.page import write_page
from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.evaluation.results import read_results, write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.schema import Prediction


def rows_of(folder: Path, make: Callable[..., Prediction], count: int, side: int = 8) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    predictions = [
        make(f"s{k}#1", rng.integers(0, 256, (side, side, 3)).astype(np.uint8), gate=[0.5]) for k in range(count)
    ]
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


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """What a full disk, a crash of the machine or an editor makes of a file of JSON lines."""
    lines = whole.splitlines(keepends=True)
    kind, place = rng.randrange(7), rng.randrange(len(lines))
    if kind == 0:
        return whole[: rng.randrange(len(whole))]
    if kind == 1:
        lines[place] = bytes(len(lines[place]) - 1) + b"\n"
    elif kind == 2:
        lines[place] = rng.choice([b"5\n", b"[]\n", b'"id"\n', b"null\n", b"{}\n", b"[" * 5000 + b"\n", b"\xff\n"])
    elif kind == 3:
        at = rng.randrange(len(lines[place]))
        lines[place] = lines[place][:at] + b"\n" + lines[place][at:]
    elif kind == 4:
        at = rng.randrange(len(whole))
        return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    else:  # another kind of value where one is expected
        found = [part for part in (b"{", b"[", b'"', b"null", b"0.5") if part in lines[place]]
        at = lines[place].find(rng.choice(found), rng.randrange(max(1, len(lines[place]) - 2))) if found else -1
        lines[place] = lines[place][:at] + rng.choice([b"5", b"[]", b"null", b'"x"', b"{}"]) + lines[place][at + 1 :]
    return b"".join(lines)


def evaluated(folder: Path, make: Callable[..., Prediction]) -> Path:
    """A finished evaluation whose replies have letters of two bytes, and scores."""
    rows = rows_of(folder, make, 4, 32)
    scores = {"clip": [0.5, 0.25], "inter_rel": 40.0, "all_right": [True], "bleu_statistics": [3, 2, 3, 2, 3, 3]}
    write_predictions(folder, [{**row, "scores": scores, "request": "grün"} for row in rows])
    protocol = {"generation": "abc", "dataset": "coco", "tasks": {"edit": "trained"}, "versions": {"torch": "1"}}
    write_results(folder, {"clip": Estimate(1.0, 4, 0.5, 1.5)}, protocol)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("turns", [15, pytest.param(150, marks=pytest.mark.slow)])
def test_no_damage_ends_in_a_traceback(tmp_path: Path, make_prediction: Callable[..., Prediction], turns: int) -> None:
    whole, bad = evaluated(tmp_path / "a", make_prediction), evaluated(tmp_path / "b", make_prediction)
    journal = Journal(bad, 0, "abc")
    for row in rows_of(bad, make_prediction, 3, 32):
        journal.add(row)
    rng = random.Random(0)
    uses: list[Callable[[], object]] = [
        lambda: known_replies(bad, "abc"), lambda: compare(whole, bad), lambda: compare(bad, whole),
        lambda: compare_pictures(whole, bad, "shapes"), lambda: read_results(bad / "results.json"),
        lambda: write_page(bad), lambda: write_page(whole, beside={"other": bad}),
    ]  # fmt: skip
    refused = 0
    for turn in range(turns):
        path = bad / ("results.json", "predictions.jsonl", journal.path.name)[turn % 3]
        before = path.read_bytes()
        path.write_bytes(damaged(before, rng))
        for use in uses:
            try:
                use()
            except UserError as error:
                refused += 1
                assert len(str(error)) < 1000
        path.write_bytes(before)
    assert refused > turns // 2
    assert len(known_replies(bad, "abc")) == 4 and compare(whole, bad)


def test_lines_that_are_lost_are_counted(
    tmp_path: Path, make_prediction: Callable[..., Prediction], caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, 0, "abc")
    for row in rows_of(tmp_path, make_prediction, 5):
        journal.add({**row, "request": "grün"})
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[2], lines[4] = bytes(len(lines[2]) - 1) + b"\n", b"17\n"
    last = lines[5][: lines[5].index("ü".encode()) + 1]  # in the middle of a letter
    journal.path.write_bytes(b"".join([*lines[:5], last]))
    with caplog.at_level(logging.WARNING):
        assert sorted(known_replies(tmp_path, "abc")) == ["s0#1", "s2#1"]
    assert "3 lines are cut or damaged" in caplog.text
    caplog.clear()
    journal.path.write_bytes(bytes(40) + b"\n" + b"".join(lines[1:]))
    with caplog.at_level(logging.WARNING):
        assert known_replies(tmp_path, "abc") == {}
    assert "damaged at its beginning" in caplog.text
    Journal(tmp_path, 0, "abc", keep=True).add(json.loads(lines[1]))
    assert list(known_replies(tmp_path, "abc")) == ["s0#1"], "a journal without a head begins anew"
