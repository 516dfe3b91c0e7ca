from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.data.faults import check
from m2chat.data.images import save_png
from m2chat.data.shards import find_shards, open_shard, write_groups, write_shards
from m2chat.data.sources import sample_of
from m2chat.data.subset import Choice, subset
from m2chat.errors import UserError
from m2chat.schema import Image, Sample, Turn


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def sample(number: int) -> Sample:
    turns = (Turn("user", (f"draw {number}",)), Turn("assistant", (0,)))
    return Sample(
        f"own/n{number}", turns, (Image(picture(number), f"picture {number}"),), kind="instruct", source="own"
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 samples in four shards."""
    write_shards((sample(i) for i in range(60)), tmp_path / "source", "own", 16)
    return tmp_path / "source"


def ids(folder: Path) -> list[str]:
    found = []
    for path in find_shards(folder):
        shard = open_shard(path)
        found += [sample_of(shard.members(i), e.key, "own").id for i, e in enumerate(shard.entries)]
    return found


def chosen(source: Path, target: Path, per_shard: int = 1000, **settings: object) -> list[str]:
    subset(str(source), target, Choice(**settings), per_shard)  # type: ignore[arg-type]
    return ids(target)


def test_the_same_samples_whatever_the_shards(source: Path, tmp_path: Path) -> None:
    write_shards((sample(i) for i in reversed(range(60))), tmp_path / "other", "zzz", 7)
    first = chosen(source, tmp_path / "a", count=20)
    assert len(first) == 20 and set(first) == set(chosen(tmp_path / "other", tmp_path / "b", count=20))
    assert first == [name for name in ids(source) if name in first]  # in their order
    assert set(chosen(source, tmp_path / "c", count=20, seed=1)) != set(first)


def test_a_larger_choice_contains_the_smaller(source: Path, tmp_path: Path) -> None:
    sets = [set(chosen(source, tmp_path / f"{count}", count=count)) for count in (5, 20, 40, 100)]
    assert [len(found) for found in sets] == [5, 20, 40, 60]
    assert all(small < large for small, large in itertools.pairwise(sets))
    share = set(chosen(source, tmp_path / "share", share=0.5))
    assert 15 < len(share) < 45 and (share <= sets[2] or sets[2] <= share)
    assert set(chosen(tmp_path / "40", tmp_path / "again", count=20)) == sets[1]  # of a choice too
    assert len(chosen(source, tmp_path / "all", share=1.0)) == 60


def test_the_bytes_are_the_same_and_listed(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        chosen(source, tmp_path / name / "few", per_shard=8, count=20)
    files = sorted(path.name for path in (tmp_path / "a" / "few").iterdir() if not path.name.endswith(".idx.json"))
    assert files == ["few-000000.tar", "few-000001.tar", "few-000002.tar", "index.json"]
    for name in files:
        assert (tmp_path / "a" / "few" / name).read_bytes() == (tmp_path / "b" / "few" / name).read_bytes()
    record = json.loads((tmp_path / "a" / "few" / "index.json").read_text())
    assert [shard["samples"] for shard in record["shards"]] == [8, 8, 4]
    assert record["kinds"] == {"instruct": 20} and record["subset"] == {"count": 20, "share": 1.0, "seed": 0}
    assert check(tmp_path / "a" / "few").faults == []


def test_two_sets_can_be_parted(source: Path, tmp_path: Path) -> None:
    val = set(chosen(source, tmp_path / "val", count=6))
    assert main(["data", "subset", str(source), str(tmp_path / "train"), "--without", str(tmp_path / "val")]) == 0
    assert set(ids(tmp_path / "train")) == set(ids(source)) - val
    main(["data", "subset", str(source), str(tmp_path / "few"), "--without", str(tmp_path / "val"), "--count", "10"])
    assert len(ids(tmp_path / "few")) == 10 and not set(ids(tmp_path / "few")) & val


def test_what_is_broken_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = save_png(picture(0))
    groups = [
        ("0", {"png": png, "txt": b"one"}),
        ("1", {"png": png, "json": b"{"}),
        ("2", {"txt": b"two"}),
        ("3", {"png": png, "txt": b"three"}),
    ]
    write_groups(groups, tmp_path / "source", "x", 10)
    write_groups(groups[3:], tmp_path / "source", "y", 10)
    assert main(["data", "subset", str(tmp_path / "source"), str(tmp_path / "few"), "--count", "9"]) == 0
    printed = capsys.readouterr().out
    assert "2 samples in 1 shards" in printed and "no 9 samples" in printed
    for reason in ("broken json", "no picture", "same key as the sample before it"):
        assert f"1 x {reason}" in printed
    assert [entry.key for entry in open_shard(tmp_path / "few" / "few-000000.tar").entries] == ["0", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to choose by"),
        (["--count", "0"], "--count '0': choose a whole number from 1"),
        (["--share", "1.5"], "--share '1.5': choose above 0 to 1"),
        (["--count", "1", "--per-shard", "0"], "--per-shard '0'"),
    ],
)
def test_settings_that_do_not_fit(
    source: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "subset", str(source), str(tmp_path / "t"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "t").exists()


def test_nothing_is_overwritten_and_nothing_half_made(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        subset(str(source), source, Choice(count=1))
    with pytest.raises(UserError, match="no sample was chosen"):
        subset(str(source), tmp_path / "none", Choice(share=1e-12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
