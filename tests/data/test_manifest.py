from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from m2chat.checksums import sha256
from m2chat.data.manifest import Listed, read_manifest, write_manifest
from m2chat.errors import UserError


def test_a_round_trip(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    shards = [Listed("a.tar", 3, 10, "ab"), Listed("b.tar", 1, 5, "cd")]
    write_manifest(tmp_path, shards, {"story": 1, "edit": 3}, more="x")
    assert read_manifest(tmp_path) == {"a.tar": shards[0], "b.tar": shards[1]}
    record = json.loads((tmp_path / "index.json").read_text())
    assert record["kinds"] == {"edit": 3, "story": 1} and record["more"] == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"shards": 3}', '{"shards": [{"name": "a"}]}', '{"shards": ["a"]}'])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match="no list of shards"):
        read_manifest(tmp_path)


def test_the_checksum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"words")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"words").hexdigest()
