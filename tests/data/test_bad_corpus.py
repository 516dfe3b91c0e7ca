from __future__ import annotations

import os
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.index import open_shard
from m2chat.data.shards import write_groups
from m2chat.errors import UserError

CORPUS: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bad_corpus.py")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("bad")
    return root, CORPUS["write"](root)


def data_of(path: Path, backbones: Path, **options: Any) -> M2ChatDataModule:
    names = str(backbones)
    return M2ChatDataModule(
        train=[SourceConfig("bad", str(path))], language_model=names, vision_encoder=names, image_decoder=names,
        num_image_tokens=4, image_size=8, max_tokens=300, batch_size=4, **options,
    )  # fmt: skip


def test_there_are_many_kinds(folder: tuple[Path, Any]) -> None:
    kinds = folder[1].kinds
    assert len(set(kinds)) == len(kinds) >= 60


@pytest.mark.parametrize("workers", [0, 2])
def test_every_good_sample_comes_once_an_epoch(folder: tuple[Path, Any], backbones: Path, workers: int) -> None:
    root, corpus = folder
    data = data_of(root, backbones, max_bad_share=1.0, num_workers=workers)
    loader = data.train_dataloader()
    for _ in range(2):
        names = [sample.id for batch in loader for sample in batch.samples]
        assert Counter(names) == Counter(f"bad/{key}" for key in corpus.good)
    found: Counter[str] = Counter()
    for (source, reason), count in data.skips["train"].indexed.items():
        assert source == "bad"
        found[max((start for start in corpus.skipped if reason.startswith(start)), key=len)] += count
    assert found == corpus.skipped
    assert not data.skips["train"].missed


def test_too_many_bad_samples_stop_the_run_before_it_starts(
    folder: tuple[Path, Any], backbones: Path, tmp_path: Path
) -> None:
    good = [(f"{k:04d}", {"png": CORPUS["PNG"], "txt": b"words"}) for k in range(190)]
    bad = [(f"b{k:04d}", {"png": b"junk", "txt": b"words"}) for k in range(10)]
    write_groups(good + bad, tmp_path, "x", 1000)
    data_of(tmp_path, backbones).train_dataloader()  # 10 of 200: as many as may be
    with pytest.raises(UserError, match=r"10 of 200 .* more than max_bad_share=0.04: bad: 10 x undecodable picture"):
        data_of(tmp_path, backbones, max_bad_share=0.04).train_dataloader()
    with pytest.raises(UserError, match=r"data\.max_bad_share=2: choose from 0 to 1"):
        data_of(tmp_path, backbones, max_bad_share=2)


def test_a_sample_that_is_lost_later_is_replaced_and_counted(backbones: Path, tmp_path: Path) -> None:
    groups = [(f"{k:04d}", {"png": CORPUS["PNG"], "txt": b"words"}) for k in range(8)]
    (path,) = write_groups(groups, tmp_path, "x", 1000)
    entry = open_shard(path).entries[3]
    stat = path.stat()
    data = bytearray(path.read_bytes())
    _, offset, size = next(member for member in entry.members if member[0] == "png")
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nobody notices
    for workers in (0, 2):
        module = data_of(tmp_path, backbones, num_workers=workers)
        names = [sample.id for batch in module.train_dataloader() for sample in batch.samples]
        assert len(names) == 8 and "bad/0003" not in names and len(set(names)) == 7
        assert list(module.skips["train"].missed.values()) == [1]
        (source, reason) = next(iter(module.skips["train"].missed))
        assert source == "bad" and reason.startswith("undecodable picture")


def test_every_damaged_shard_is_counted_for_what_it_is(tmp_path: Path) -> None:
    """In the sum over shards, one that is counted twice could stand for one that is not counted."""
    CORPUS["write"](tmp_path)
    for number, (kind, (_, left, counts)) in enumerate(CORPUS["SHARDS"].items()):
        shard = open_shard(tmp_path / f"shard{number}.tar")
        found = Counter(shard.skipped) + Counter(entry.fault for entry in shard.entries if entry.fault)
        assert (found, sum(not entry.fault for entry in shard.entries)) == (counts, left), kind


@pytest.mark.fixtures
def test_hostile_files_of_the_outside_world(samples_folder: Path, backbones: Path, tmp_path: Path) -> None:
    for path in sorted((samples_folder / "bad_tars").glob("*.tar")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pictures = sorted((samples_folder / "bad_images").iterdir())
    groups = [
        (f"p{k:03d}", {path.suffix[1:] if path.suffix != ".tif" else "png": path.read_bytes(), "txt": b"words"})
        for k, path in enumerate(pictures)
    ]
    write_groups(groups, tmp_path, "pictures", 1000)
    good = Source(SourceConfig("bad", str(tmp_path)))
    expected = Counter(f"bad/{s.entries[i].key}" for s, kept in zip(good.shards, good.kept, strict=True) for i in kept)
    data = data_of(tmp_path, backbones, max_bad_share=1.0)
    assert Counter(sample.id for batch in data.train_dataloader() for sample in batch.samples) == expected
    assert expected.total() == 65 + sum(1 for i in range(len(pictures)) if f"bad/p{i:03d}" in expected)
