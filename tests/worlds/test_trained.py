from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.models.checkpoints import read_checkpoint
from m2chat.worlds.trained import trained_facts

MICRO = Path(__file__).parents[2] / "data" / "micro"


def evaluation(folder: Path, seed: int, **metrics: float) -> Path:
    folder.mkdir()
    entries = {name: {"value": value, "n": 3} for name, value in metrics.items()}
    (folder / "results.json").write_text(json.dumps({"metrics": entries, "protocol": {"seed": seed}}))
    return folder


def test_seed_steps_and_quality(tmp_path: Path) -> None:
    runs = [evaluation(tmp_path / "a", 4, bleu_1=12.345, other=1.0), evaluation(tmp_path / "b", 4, all_right=50.0)]
    facts = trained_facts(MICRO, runs)
    steps = {stage: read_checkpoint(MICRO / "m2chat" / f"{stage}.ckpt")["global_step"] for stage in ("align", "m3ft")}
    assert steps["align"] > 100 < steps["m3ft"]
    assert facts == {"seed": 4, "steps": steps, "a": {"bleu_1": 12.35}, "b": {"all_right": 50.0}}


def test_evaluations_that_cannot_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no results\.json"):
        trained_facts(MICRO, [tmp_path / "empty"])
    with pytest.raises(UserError, match=r"of the seeds \[0, 1\]"):
        trained_facts(MICRO, [evaluation(tmp_path / "a", 0), evaluation(tmp_path / "b", 1)])
