from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m2chat.errors import UserError
from m2chat.integrity import verify
from m2chat.training.atomic_io import AtomicCheckpointIO, beside


def test_round_trip_with_checksum_and_without_leftovers(tmp_path: Path) -> None:
    path, io = tmp_path / "deep" / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"x": torch.arange(1000)}, path)
    assert verify(path)
    assert torch.equal(io.load_checkpoint(path)["x"], torch.arange(1000))
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["x"], torch.arange(1000))
    assert os.listdir(path.parent) == ["a.ckpt"]


def test_any_flipped_byte_is_seen(tmp_path: Path) -> None:
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"x": torch.arange(1000)}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole) - 73, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            io.load_checkpoint(path)


def test_files_of_others_load_without_a_checksum(tmp_path: Path) -> None:
    torch.save({"x": 1}, tmp_path / "plain.ckpt")
    assert not verify(tmp_path / "plain.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "plain.ckpt") == {"x": 1}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"a\.ckpt.*are free"):
            io.save_checkpoint({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_leftovers_of_dead_processes_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = {"dead": f".a.ckpt.{host}.{dead.pid}.tmp", "live": f".a.ckpt.{host}.{os.getppid()}.tmp"}
    names["elsewhere"] = f".a.ckpt.not-{host}.{dead.pid}.tmp"
    (tmp_path / f".c.ckpt.part.{host}.{dead.pid}.tmp").mkdir()
    for name in names.values():
        (tmp_path / name).touch()
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "b.ckpt")
    assert set(os.listdir(tmp_path)) == {"b.ckpt", names["live"], names["elsewhere"]}


def test_shares_take_their_place_at_once_and_the_former_ones_come_back(tmp_path: Path) -> None:
    target, io = tmp_path / "last.ckpt", AtomicCheckpointIO()

    def put(step: int) -> None:
        part = beside(target, "part")
        part.mkdir()
        (part / "meta.pt").write_text(str(step))
        io.put_shares(part, target)

    def step() -> str:
        return (target / "meta.pt").read_text()

    put(1)
    put(2)
    assert step() == "2" and os.listdir(tmp_path) == ["last.ckpt"]
    io.keep_replaced()
    put(3)
    put(4)
    assert step() == "4" and len(os.listdir(tmp_path)) == 2
    assert io.settle(good=False) == [target] and step() == "2"
    put(5)
    assert io.settle(good=True) == [] and step() == "5"
    assert os.listdir(tmp_path) == ["last.ckpt"]
