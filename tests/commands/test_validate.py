from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.data.images import save_png
from m2chat.data.shards import write_groups

PNG = save_png(np.zeros((8, 8, 3), np.uint8))


def write(folder: Path, *captions: bytes) -> str:
    write_groups([(f"{i:03d}", {"png": PNG, "txt": words}) for i, words in enumerate(captions)], folder, "x", 100)
    return str(folder)


def test_a_clean_set_ends_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", write(tmp_path, b"one", b"two")]) == 0
    assert capsys.readouterr().out == "1 shards, 2 samples, faults: 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x-000000.tar"]  # nothing is written beside it


def test_faults_are_printed_listed_and_end_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", *[b"\xff"] * 12, b"\n")
    assert main(["data", "validate", folder, "--json", str(tmp_path / "faults.json")]) == 1
    printed = capsys.readouterr().out
    shard = f"{folder}/x-000000.tar"
    assert printed.startswith("1 shards, 13 samples, faults: 13\nnot UTF-8: 12\n")
    assert f"  {shard}: 000: txt\n" in printed and "... and 2 more\n" in printed
    assert f"no caption: 1\n  {shard}: 012\n" in printed
    record = json.loads((tmp_path / "faults.json").read_text())
    assert (record["shards"], record["samples"]) == (1, 13)
    assert record["counts"] == {"not UTF-8": 12, "no caption": 1}
    assert len(record["faults"]) == 13
    assert record["faults"][0] == {"shard": shard, "key": "000", "member": "txt", "reason": "not UTF-8", "detail": ""}


def test_a_name_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups([("\x1b[2Jx\udcff", {"txt": b"words"})], tmp_path, "x", 1)
    assert main(["data", "validate", str(tmp_path)]) == 1
    assert "\\x1b[2Jx" in (printed := capsys.readouterr().out) and "\x1b" not in printed


def test_no_shards_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", str(tmp_path)]) == 2
    assert "PATH=" in capsys.readouterr().err
