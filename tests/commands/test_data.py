from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.data.images import save_png
from m2chat.data.preview import contents_of
from m2chat.data.shards import write_groups, write_shards
from m2chat.data.sources import caption_sample
from m2chat.schema import Image


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards: three good samples, one without a picture, one with a broken one, and a file of unknown kind."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    write_shards([caption_sample("a", "own", Image(pixels, "a red circle"), {})], tmp_path, "own")
    groups = [
        ("0", {"png": save_png(pixels), "txt": b"one"}),
        ("1", {"png": save_png(pixels), "txt": b"two"}),
        ("2", {"txt": b"three"}),
        ("3", {"png": b"no picture", "txt": b"four"}),
    ]
    [pairs] = write_groups(groups, tmp_path, "pairs", 10)
    with tarfile.open(pairs, "a") as tar:
        member = tarfile.TarInfo("4.pickle")
        member.size = 3
        tar.addfile(member, BytesIO(b"abc"))
    return tmp_path


def test_inspect_counts(shards: Path) -> None:
    found = contents_of(str(shards))
    assert found.shards == 2
    assert found.kinds == {"caption": 3} and found.replies == 3
    assert found.bad == {"no picture": 1, "undecodable picture (UnidentifiedImageError)": 1}
    assert found.skipped == {"unknown suffix": 1}


def test_inspect_prints(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(shards)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 shards, 5 samples: 3 good with 3 replies, 2 bad\n")
    assert "bad:        1 x no picture" in printed
    assert main(["data", "inspect", str(shards / "nowhere")]) == 2
    assert "PATH=" in capsys.readouterr().err


def test_micro_uses_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("m2chat.worlds.shapes.shards.write_world", seen.append)
    assert main(["data", "micro", "--root", str(tmp_path)]) == 0
    assert seen == [tmp_path]
