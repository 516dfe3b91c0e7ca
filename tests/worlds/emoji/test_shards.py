"""The data sets that are made of the shipped pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.images import load_image
from m2chat.data.leak import refuse_leaks
from m2chat.data.shards import find_shards
from m2chat.errors import UserError
from m2chat.world import find_world
from m2chat.worlds.emoji.captions import CaptionReader, caption_of
from m2chat.worlds.emoji.pictures import write_pictures
from m2chat.worlds.emoji.scenes import Pictures, split_of
from m2chat.worlds.emoji.shards import write_world
from m2chat.worlds.emoji.subjects import Split, split_of_words


def samples_of(path: str) -> list[dict[str, bytes]]:
    """Members of each sample by suffix, as the webdataset library reads them."""
    return [dict(sample) for sample in wds.WebDataset(path, shardshuffle=False)]


def test_every_picture_lands_in_the_split_that_it_belongs_to(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    write_world(tmp_path / "shards", tmp_path / "pictures", {})
    pixels = {scene.file: world.pixels[i] for i, scene in enumerate(world.scenes)}
    held_out = {s.file for s, split in zip(world.scenes, split_of(world.scenes), strict=True) if split != "train"}
    scenes = {scene.file: scene for scene in world.scenes}
    reader, files, exact = CaptionReader(world.scenes), dict[str, list[str]](), list[str]()
    for split in ("train", "val", "test"):
        for path in find_shards(tmp_path / "shards" / "emoji" / split, "shards"):
            for members in samples_of(str(path)):
                record = json.loads(members["json"])
                files.setdefault(split, []).append(record["file"])
                assert np.array_equal(load_image(members["png"]), pixels[record["file"]])
                assert members["txt"].decode() == record["caption"] and record["license"]
                if record["caption"] == caption_of(scenes[record["file"]]):
                    exact.append(record["file"])
                    assert reader.read(record["caption"]) == record["scenes"][0]
    assert sorted(exact) == sorted(pixels)
    free = sum(scene.is_plain for file, scene in scenes.items() if file in files["train"])
    assert free and len(files["train"]) == len(set(files["train"])) + free
    assert held_out and set(files["test"]) == held_out
    assert not set(files["train"]) & held_out and not set(files["train"]) & set(files.get("val", ()))
    assert {file for of_split in files.values() for file in of_split} == pixels.keys()


def test_every_exact_caption_without_a_style_is_paired_with_one_picture(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    write_world(tmp_path / "shards", tmp_path / "pictures", {})
    pairs: dict[str, dict[str, str]] = {"emoji": {}, "unstyled": {}}
    for name, of in pairs.items():
        for path in find_shards(tmp_path / "shards" / name / "train", "shards"):
            for record in (json.loads(members["json"]) for members in samples_of(str(path))):
                of.setdefault(record["file"], record["caption"])
    scenes = {scene.file: scene for scene in world.scenes}
    wanted = sorted({caption_of(scenes[file], style=False) for file in pairs["emoji"]})
    assert sorted(pairs["unstyled"].values()) == wanted
    assert all(caption == caption_of(scenes[file], style=False) for file, caption in pairs["unstyled"].items())
    assert (
        pairs["unstyled"].keys() <= pairs["emoji"].keys() and not (tmp_path / "shards" / "unstyled" / "test").exists()
    )


def test_conversations_lie_beside_the_pairs(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    counts: dict[Split, int] = {"train": 3, "test": 2}
    write_world(tmp_path / "shards", tmp_path / "pictures", {"unknown": counts})
    for split, count in counts.items():
        folder = tmp_path / "shards" / "unknown" / split
        source = Source(SourceConfig("unknown", str(folder)))
        samples = [source.read(*source.place(number)) for number in range(len(source))]
        assert [sample.kind for sample in samples] == ["dialogue"] * count
        assert {split_of_words(sample.turns[0].text) for sample in samples} == {split}


def test_no_training_sample_comes_back_in_validation_or_test(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    write_world(tmp_path / "shards", tmp_path / "pictures", {})

    def sources(split: str) -> list[Source]:
        folder = tmp_path / "shards" / "emoji" / split
        return [Source(SourceConfig("emoji", str(folder)))] if folder.is_dir() and any(folder.glob("*.tar")) else []

    held_out = {split: sources(split) for split in ("val", "test") if sources(split)}
    assert "test" in held_out
    refuse_leaks(sources("train"), held_out)
    with pytest.raises(UserError, match="share"):
        refuse_leaks(sources("train"), {"val": sources("train")})


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pictures"):
        write_world(tmp_path / "shards", tmp_path / "nothing")
    assert not (tmp_path / "shards").exists()


def test_the_world_is_found_by_its_name() -> None:
    world = find_world("emoji")
    assert world.image_size == 64 and "concept" in world.attributes
