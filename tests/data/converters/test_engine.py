from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m2chat.data.converters import engine
from m2chat.data.converters.engine import convert
from m2chat.data.converters.raw import REQUESTS, caption_pair
from m2chat.errors import UserError

COMMAND = "import sys; from m2chat.commands import main; sys.exit(main())"


def fill(raw: Any, count: int, side: int = 48) -> None:
    """Our own folder: every seventh picture is missing, every fifth has no caption."""
    rows = []
    for number in range(count):
        if number % 7:
            raw.put(f"{number}.jpg", raw.as_bytes(raw.photo(number, side, side)))
        rows.append({"file_name": f"{number}.jpg", "caption": f"picture {number}" if number % 5 else ""})
    raw.put_lines("metadata.jsonl", rows)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".idx.json")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_index_tells_the_truth(raw: Any, run: Callable[..., Any]) -> None:
    fill(raw, 40)
    done = run("folder", name="mine", per_shard=10)
    found = contents(done.folder)
    assert [shard["sha256"] for shard in done.index["shards"]] == [
        found[f"mine-{i:06d}.tar"] for i in range(len(done.index["shards"]))
    ]
    assert sum(shard["samples"] for shard in done.index["shards"]) == len(done.samples) == done.index["pictures"]
    assert done.index["rejects"] == dict(Counter(done.rejects.values())) == {"no caption": 8, "picture missing": 4}
    assert json.loads((done.folder / "index.json").read_text()) == done.index
    first = done.records[0]["images"][0]
    assert first["sha256"] == hashlib.sha256(done.members[0]["img0.jpg"]).hexdigest()


def test_bytes_depend_on_the_raw_data_alone(raw: Any, job: Callable[..., Any]) -> None:
    fill(raw, 40)
    for name, workers in (("a", 1), ("b", 3)):
        convert(job("folder", dst=raw.path / name, per_shard=6, workers=workers))
    assert contents(raw.path / "a") == contents(raw.path / "b")


def test_a_shard_of_rejects_alone_does_not_exist(raw: Any, run: Callable[..., Any]) -> None:
    fill(raw, 9)
    for number in range(1, 5):
        (raw.path / f"{number}.jpg").write_bytes(b"")
    done = run("folder", per_shard=4)
    assert [shard["name"] for shard in done.index["shards"]] == ["own-000001.tar"]
    assert done.index["rejects"]["empty picture file"] == 4


def test_complete_is_complete(raw: Any, job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(raw, 10)
    index = convert(job("folder"))
    monkeypatch.setattr(engine, "make_shard", None)
    assert convert(job("folder", workers=2)) == index
    with pytest.raises(UserError, match="other settings"):
        convert(job("folder", form="instruct"))
    (job("folder").dst / "own-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"own-000000\.tar differs from what"):
        convert(job("folder"))


def test_a_failed_run_goes_on_but_not_with_other_data(
    raw: Any, job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(raw, 40)
    convert(job("folder", dst=raw.path / "whole", per_shard=5))
    make, made = engine.make_shard, []

    def failing(*arguments: Any) -> int:
        if len(made) == 3:
            raise OSError(28, "No space left on device")
        made.append(arguments[1])
        return make(*arguments)

    monkeypatch.setattr(engine, "make_shard", failing)
    with pytest.raises(OSError, match="No space"):
        convert(job("folder", per_shard=5))
    assert not (job("folder").dst / "index.json").exists()
    with pytest.raises(UserError, match="half done conversion"):
        convert(job("folder", per_shard=6))
    made.clear()
    monkeypatch.setattr(engine, "make_shard", lambda *a: (made.append(a[1]), make(*a))[1])
    convert(job("folder", per_shard=5))
    assert made[0] == 3  # the first three are there
    assert contents(job("folder").dst) == contents(raw.path / "whole")


def test_somebody_elses_folder_is_left_alone(raw: Any, job: Callable[..., Any]) -> None:
    fill(raw, 10)
    (job("folder").dst).mkdir()
    (job("folder").dst / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        convert(job("folder"))


def test_a_wrong_call_binds_nobody(raw: Any, job: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        convert(job("folder"))
    fill(raw, 10)
    assert convert(job("folder", form="instruct"))["kinds"] == {"instruct": 7}


def test_limit(raw: Any, run: Callable[..., Any]) -> None:
    fill(raw, 40)
    done = run("folder", limit=6)
    assert len(done.samples) + len(done.rejects) == 6


def test_requests_are_many_and_depend_on_the_id_alone() -> None:
    from m2chat.data.converters.raw import PictureFile

    assert len(set(REQUESTS)) >= 7 and all(words.count("{}") == 1 for words in REQUESTS)
    asked = [caption_pair(str(i), PictureFile("", caption="a {dog}"), "instruct").turns[0].text for i in range(400)]
    counts = Counter(words.replace("a {dog}", "{}") for words in asked)
    assert set(counts) == set(REQUESTS) and min(counts.values()) > 20
    assert asked == [
        caption_pair(str(i), PictureFile("", caption="a {dog}"), "instruct").turns[0].text for i in range(400)
    ]


def start(raw: Any, folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["data", "convert", "folder", str(raw.path), str(folder), "--per-shard", "10", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def shards(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.slow
@pytest.mark.parametrize("kills", [10])
def test_killed_at_random_points_it_gives_the_same_bytes(raw: Any, tmp_path: Path, kills: int) -> None:
    fill(raw, 100 * (kills + 2), side=200)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(raw, whole).wait(120) == 0
    rng = random.Random(0)
    for wanted in sorted(rng.sample(range(shards(whole) - 8), kills)):
        process = start(raw, parts)
        end = time.monotonic() + 60
        while shards(parts) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))  # in the middle of whatever it does then
        process.kill()  # its workers are left to themselves
        assert process.wait() == -signal.SIGKILL
        assert not (parts / "index.json").exists() and shards(parts) >= wanted
    assert start(raw, parts).wait(120) == 0
    assert contents(parts) == contents(whole)
