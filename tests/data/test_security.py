"""Nothing in a shard is ever executed, and nothing is written anywhere by its name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.eval_stream import EvalStream
from m2chat.data.images import save_png

PNG = save_png(np.zeros((4, 4, 3), np.uint8))
SUFFIXES = ("pickle", "pkl", "pyd", "pyc", "py", "pth", "pt", "npy", "npz", "ten", "cls", "json", "txt", "jpg", "sh")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def tar_with(path: Path, files: list[tuple[str, bytes]], links: list[tuple[str, bytes, str]] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind, target in links or []:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)


def read_all(path: Path) -> list[str]:
    return [item.sample.id for batch in EvalStream([Source(SourceConfig("x", str(path)))], 4) for item in batch]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_pickle_is_opened(tmp_path: Path, suffix: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.tar"
    payload = pickle.dumps(Bomb(canary))
    tar_with(path, [("a.png", PNG), ("a.txt", b"good"), ("b.png", PNG), (f"b.{suffix}", payload)])
    names = read_all(path)
    assert "x/a" in names and not canary.exists()
    pickle.loads(payload)
    assert canary.exists(), "the canary must be able to sing"


@pytest.mark.parametrize("suffix", ["py", "pyd", "sh", "so", "yaml"])
def test_no_code_is_run(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    code = f"#!/bin/sh\ntouch {canary}\n" if suffix == "sh" else f"open({str(canary)!r}, 'w')\n"
    tar_with(tmp_path / "a.tar", [("a.png", PNG), ("a.txt", b"good"), (f"a.{suffix}", code.encode())])
    monkeypatch.chdir(tmp_path)
    assert read_all(tmp_path / "a.tar") == ["x/a"] and not canary.exists()


def test_names_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    names = ["../../climbs", str(tmp_path / "absolute"), "pipe:touch canary", "~/x", "a/../../b"]
    tar_with(home / "a.tar", [file for name in names for file in ((f"{name}.png", PNG), (f"{name}.txt", b"good"))])
    found = read_all(home / "a.tar")
    assert len(found) == len(names) and not any(".." in name or name.count("/") > 1 for name in found)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.tar", "a.tar.idx.json"}


def test_links_show_nothing_of_the_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    links = [("a.txt", tarfile.SYMTYPE, str(secret)), ("b.txt", tarfile.LNKTYPE, str(secret))]
    tar_with(tmp_path / "a.tar", [("c.png", PNG), ("c.txt", b"good"), ("a.png", PNG)], links)
    assert read_all(tmp_path / "a.tar") == ["x/c"]
    assert "password" not in (tmp_path / "a.tar.idx.json").read_text()


@pytest.mark.parametrize("places", [[["txt", 10**9, 100]], [["txt", 0, 5], ["png", 10**13, 5]], [["png", 0, 10**12]]])
def test_an_index_that_lies_reads_nothing_else(tmp_path: Path, places: list[list[object]]) -> None:
    """Whoever can write the index beside a tar can at most spoil samples."""
    tar_with(tmp_path / "a.tar", [("a.png", PNG), ("a.txt", b"good")])
    read_all(tmp_path / "a.tar")
    beside = tmp_path / "a.tar.idx.json"
    head, line = beside.read_text().splitlines()
    row = json.loads(line)
    row[3] = places
    lines = json.dumps(row) + "\n"
    record = json.loads(head) | {"digest": hashlib.sha256(lines.encode()).hexdigest()}
    beside.write_text(json.dumps(record) + "\n" + lines)
    assert read_all(tmp_path / "a.tar") == []
