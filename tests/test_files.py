from __future__ import annotations

import errno
import os
import signal
from itertools import count
from pathlib import Path

import pytest

from m2chat.errors import CannotWriteError, UserError
from m2chat.files import by_number, locked, take_file, take_folder, whole_file, whole_folder, write_new, write_whole


def test_parts_come_in_the_order_of_their_numbers() -> None:
    parts = [Path(f"list/part-{number}.parquet") for number in (1, 2, 9, 10, 100)]
    assert sorted(sorted(parts), key=by_number) == parts
    # Padded names keep the order that they had by their letters.
    padded = [Path(name) for name in ("a-00/2-000.tar", "a-00/2.tar", "a/00001.tar", "train-000.tar", "train2-000.tar")]
    assert sorted(padded, key=by_number) == sorted(padded)
    assert sorted(["s3://b/10.tar", "s3://b/9.tar"], key=by_number) == ["s3://b/9.tar", "s3://b/10.tar"]


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with whole_file(target) as part:
        part.write_text("new")
        assert not target.exists() and part.parent == tmp_path
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="full"), whole_file(target) as part:
        part.write_text("half")
        raise RuntimeError("disk full")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with whole_file(target) as first, whole_file(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_bytes_and_texts(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"bytes\r\n")
    write_whole(tmp_path / "b", (text for text in ("one\n", "lone \ud800 surrogate\r\n")))
    assert (tmp_path / "a").read_bytes() == b"bytes\r\n"
    assert (tmp_path / "b").read_bytes() == b"one\nlone ? surrogate\r\n"


def test_two_writers_of_a_folder_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with whole_folder(target, replace=True) as first, whole_folder(target, replace=True) as second:
        assert first != second
        (first / "file").write_text("first")
        (second / "file").write_text("second")
    assert (target / "file").read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_each_process_takes_a_folder_and_a_file_of_its_own(tmp_path: Path) -> None:
    gate_out, gate_in = os.pipe()
    children = []
    for _ in range(8):
        if (pid := os.fork()) == 0:
            os.close(gate_in)
            os.read(gate_out, 1)  # all at the same moment
            for _ in range(25):
                (take_folder(tmp_path / "runs", (f"run_{n}" for n in count())) / str(os.getpid())).touch()
                take_file(tmp_path / "files", "picture", ".png").write_text(str(os.getpid()))
            os._exit(0)
        children.append(pid)
    os.close(gate_in)
    os.close(gate_out)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    runs = {path.name: list(path.iterdir()) for path in (tmp_path / "runs").iterdir()}
    assert runs.keys() == {f"run_{n}" for n in range(200)} and all(len(files) == 1 for files in runs.values())
    files = {path.name: path.read_text() for path in (tmp_path / "files").iterdir()}
    assert files.keys() == {"picture.png", *(f"picture_{n}.png" for n in range(1, 200))}
    assert sorted(files.values()) == sorted(path[0].name for path in runs.values())


def test_a_folder_that_cannot_be_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make a folder in"):
        take_folder(tmp_path / "file" / "runs", ["run"])
    take_folder(tmp_path, ["run"])
    with pytest.raises(UserError, match="is there already"):
        take_folder(tmp_path, ["run"])


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    said, says = os.pipe()
    if (pid := os.fork()) == 0:
        with locked(path):
            os.write(says, b"x")
            signal.pause()
    os.read(said, 1)
    with pytest.raises(UserError, match="another process writes to"), locked(path, wait=False):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(path, wait=False):
        pass
    assert not list(tmp_path.iterdir())


def test_processes_take_turns(tmp_path: Path) -> None:
    """Each adds to a number that is lost if two read it at once; the file of the lock comes and goes meanwhile."""
    number = tmp_path / "number"
    number.write_text("0")
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            for _ in range(100):
                with locked(number):
                    number.write_text(str(int(number.read_text()) + 1))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert number.read_text() == "400"


def test_a_write_that_fails_states_path_need_and_free_space(tmp_path: Path) -> None:
    with pytest.raises(
        CannotWriteError, match=r"cannot write .*/none/a\.json: No such file.*3 bytes are needed, .* free"
    ):
        write_whole(tmp_path / "none" / "a.json", b"abc")
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(UserError, match=r"a\.png: No space left.*9 bytes are needed"),
        whole_file(tmp_path / "a.png", 9),
    ):
        raise full
    with pytest.raises(UserError, match=r"cannot write .*b: writing failed"), whole_file(tmp_path / "b"):
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="another") as other, whole_file(tmp_path / "a"):
        raise OSError(errno.ENOENT, "another", "input")
    assert not isinstance(other.value, UserError), "what is read in the block is not what is written"
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError):
        write_whole(tmp_path / "a.png", b"1")


def test_no_empty_file_stays_where_a_new_one_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        write_new(tmp_path, "picture", ".png", b"12")
    assert list(tmp_path.iterdir()) == []
