from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.models.checkpoints import HEADER, Header
from m2chat.models.choosing import RUN, ChosenCheckpoint, choose_checkpoint
from m2chat.models.config import BackboneConfig, NewLoraConfig
from toys import named_backbones

WHOLE: dict[str, Any] = {"steps": 500, "of": 500, "shortened": [], "worlds": ["shapes"], "sources": ["cc3m", "laion"]}


def write(folder: Path, hours: int, **record: Any) -> Path:
    """A checkpoint of so many hours ago; without a record it is of an earlier version."""
    folder.mkdir(parents=True)
    path = folder / "a.ckpt"
    header = Header(stage="align", fingerprint="abc", version=1)
    torch.save({"state_dict": {}, HEADER: header, **({RUN: {**WHOLE, **record}} if record else {})}, path)
    time = path.stat().st_mtime - 3600 * hours
    os.utime(path, (time, time))
    return path


@pytest.mark.parametrize(("stage", "is_taken"), [("align", True), ("m3ft", False)])
def test_weights_with_other_low_rank_updates_are_passed_over(tmp_path: Path, stage: str, is_taken: bool) -> None:
    path = write(tmp_path / "version_1/checkpoints", 1, steps=500)
    payload = torch.load(path)
    payload[HEADER]["stage"] = stage
    backbone = asdict(BackboneConfig("", "", "", "", 1, new_lora=NewLoraConfig(rank=2)))
    torch.save({**payload, "config": {"backbone": backbone}}, path)
    chosen = choose_checkpoint(tmp_path, stage, named_backbones(), None)
    assert (chosen.path == path) == is_taken
    assert is_taken or "backbone.new_lora is {'rank': 2" in chosen.others[0]


def choose(root: Path, *worlds: str) -> ChosenCheckpoint:
    return choose_checkpoint(root, "align", named_backbones(), worlds or None)


def test_only_a_finished_run_at_full_length_on_the_same_data_is_taken(tmp_path: Path) -> None:
    whole = write(tmp_path / "version_0/checkpoints", 50, steps=500)
    others = {
        write(tmp_path / "version_1/checkpoints", 4): "did not record whether the run was finished",
        write(tmp_path / "version_2/checkpoints", 3, steps=12): "not finished: 12 of 500 steps",
        write(tmp_path / "version_3/checkpoints", 2, shortened=["trainer.max_steps=20"], steps=20, of=20):
            "20 steps, shortened on the command line by trainer.max_steps=20",
        write(tmp_path / "version_4/checkpoints", 1, worlds=[""], sources=["mine"]): "trained on mine, other data",
    }  # fmt: skip
    chosen = choose(tmp_path, "shapes")
    assert chosen.path == whole and chosen.about == "500 steps, cc3m and laion of the world shapes, 2 days old"
    assert chosen.others[-1] == "1 more" and len(chosen.others) == 4
    for path, reason in list(others.items())[1:]:
        assert any(str(path) in other and reason in other for other in chosen.others), reason
    whole.unlink()
    assert choose(tmp_path, "shapes").path is None
    newest = list(others)[3]
    assert choose(tmp_path).path == newest == choose(tmp_path, "", "shapes").path


def test_a_run_that_is_named_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "version_2/checkpoints", 3, steps=12)
    assert choose(tmp_path).path is None
    assert choose(tmp_path / "version_2", "emoji").path == path
