from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from m2chat.data import prints
from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.images import save_png
from m2chat.data.leak import refuse_leaks
from m2chat.data.prints import prints_of_shard
from m2chat.data.shards import open_shard, write_groups, write_shards
from m2chat.errors import UserError
from m2chat.schema import Image, Sample, Turn
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parents[2]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def talk(name: str, *said: str, seed: int, source: str = "talk") -> Sample:
    """A conversation that ends with a picture; `said` alternates between user and assistant, user last."""
    turns = [Turn("assistant" if k % 2 else "user", (text,)) for k, text in enumerate(said)]
    reply = Turn("assistant", ("here", 0))
    return Sample(name, (*turns, reply), (Image(picture(seed), "a dog"),), kind="dialogue", source=source)


def open_source(path: Path, **options: Any) -> Source:
    return Source(SourceConfig("cc", str(path), **options))


Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def run(train: Iterable[Sample], val: Iterable[Sample], **how: bool) -> None:
        for name, samples in (("train", train), ("val", val)):
            write_shards(samples, tmp_path / name)
        refuse_leaks([open_source(tmp_path / "train")], {"val": [open_source(tmp_path / "val")]}, **how)

    return run


def test_different_samples_pass(check: Check) -> None:
    check([talk("talk/a", "hello", seed=0)], [talk("talk/b", "hello", seed=1)])


def test_an_id_is_refused_with_both_places_and_the_remedy(check: Check) -> None:
    with pytest.raises(UserError) as error:
        check([talk("talk/x-7", "hello", seed=0)], [talk("talk/y", "z", seed=2), talk("talk/x-7", "other", seed=1)])
    message = str(error.value)
    assert "share 1 sample" in message and "has the id of" in message
    assert "'talk/x-7' (key 000000001 of " in message and "'talk/x-7' (key 000000000 of " in message
    assert "--without" in message and "data.check_leaks" in message


def test_a_number_is_no_name_unless_the_words_agree(check: Check) -> None:
    check([talk("talk/000001", "hello", seed=0)], [talk("talk/000001", "good day", seed=1)])
    with pytest.raises(UserError, match="has the id and words of"):
        check([talk("talk/000001", "hello", seed=0)], [talk("talk/000001", " Hello", seed=1)])


def test_a_picture_is_recognised_under_any_name(check: Check) -> None:
    with pytest.raises(UserError, match="has the picture of"):
        check([talk("talk/a", "one", seed=0)], [talk("talk/b", "two", seed=0)])


def test_words_alone_are_compared_where_pictures_are_shared(check: Check) -> None:
    check([talk("talk/a", "one", seed=0)], [talk("talk/b", "two", seed=0)], compares_pictures=False)
    said = ("shall we ?", "yes", "then show it")
    with pytest.raises(UserError, match="has the conversation of"):
        check([talk("talk/a", *said, seed=0)], [talk("talk/b", *said, seed=0)], compares_pictures=False)


def test_a_conversation_is_recognised_by_its_words(check: Check) -> None:
    said = ("shall we ?", "yes", "then show it")
    spelt = ("Shall  we ?", "yes", "then show it")
    with pytest.raises(UserError, match="has the conversation of"):
        check([talk("talk/a", *said, seed=0)], [talk("talk/b", *spelt, seed=1)])


def test_a_greeting_alone_is_no_leak(check: Check) -> None:
    check([talk("talk/a", "hello", seed=0)], [talk("talk/b", "hello", seed=1)])


def test_caption_pairs_are_compared_too(tmp_path: Path) -> None:
    def files(key: str, seed: int, caption: str) -> tuple[str, dict[str, bytes]]:
        return key, {"png": save_png(picture(seed)), "txt": caption.encode()}

    write_groups([files("000", 0, "a dog"), files("001", 1, "a cat")], tmp_path / "train", "cc", 9)
    write_groups([files("000", 2, "a cow")], tmp_path / "val", "cc", 9)
    write_groups([files("000", 3, "a dog")], tmp_path / "test", "cc", 9)
    source = {name: [open_source(tmp_path / name)] for name in ("train", "val", "test")}
    refuse_leaks(source["train"], {"val": source["val"]})
    with pytest.raises(UserError, match=r"test sample '000' .* has the id and words of train sample '000'"):
        refuse_leaks(source["train"], {"val": source["val"], "test": source["test"]})


def test_what_is_not_used_does_not_count(tmp_path: Path) -> None:
    sample = talk("talk/a", "hello", seed=0)
    write_shards([sample, replace(sample, id="talk/e", kind="edit", images=(Image(picture(9)),))], tmp_path / "train")
    write_shards([sample], tmp_path / "val")
    held_out = {"val": [open_source(tmp_path / "val")]}
    refuse_leaks([open_source(tmp_path / "train", kinds=["edit"])], held_out)
    refuse_leaks([open_source(tmp_path / "train", weight=0)], held_out)
    refuse_leaks([], held_out)
    with pytest.raises(UserError, match="share 1 sample"):
        refuse_leaks([open_source(tmp_path / "train")], held_out)


def test_prints_are_kept_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_shards([talk("talk/a", "hello", seed=0)], tmp_path)
    first = prints_of_shard(open_shard(path))
    with monkeypatch.context() as patch:
        patch.setattr(prints, "_scan", lambda shard: pytest.fail("read again"))
        assert np.array_equal(prints_of_shard(open_shard(path)).hashes, first.hashes)
    write_shards([talk("talk/b", "hello", seed=1)], tmp_path)
    os.utime(path, (1, 1))
    assert not np.isin(prints_of_shard(open_shard(path)).hashes, first.hashes).any()
    beside = path.with_name(f"{path.name}.prints.npz")
    for damage in (b"", b"PK\x03\x04", beside.read_bytes()[:200]):
        beside.write_bytes(damage)
        assert len(prints_of_shard(open_shard(path)).hashes) == 3


def test_prints_go_into_the_cache_where_the_shards_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_shards([talk("talk/a", "hello", seed=0)], tmp_path / "shards")
    path.with_name(f"{path.name}.prints.npz").mkdir()  # a folder of that name: nothing can be written there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prints_of_shard(open_shard(path))
    (kept,) = (tmp_path / "cache" / "m2chat" / "prints").iterdir()
    assert kept.suffix == ".npz" and prints.are_kept(open_shard(path))
    assert sorted(item.name for item in path.parent.iterdir() if item.suffix == ".part") == []


@pytest.mark.parametrize("config", ["stage1", "stage2"])
def test_the_shipped_configurations_have_no_leak(config: str) -> None:
    write_world(ROOT / "data/micro/shards")
    data = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text())["data"]
    train, val = (
        [Source(SourceConfig(**{**row, "path": str(ROOT / row["path"])})) for row in data[split]]
        for split in ("train", "val")
    )
    refuse_leaks(train, {"val": val})
