"""The shipped pictures."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.worlds.emoji import pictures
from m2chat.worlds.emoji.pictures import picture_of, read_pictures, write_pictures
from m2chat.worlds.emoji.scenes import LICENSES, Pictures, split_of


def records(root: Path) -> list[dict[str, object]]:
    found = []
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".json"):
                    file = shard.extractfile(member)
                    assert file is not None
                    found.append(json.load(file))
    return found


def test_scenes_and_pixels_come_back_exactly(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    again = read_pictures(tmp_path / "pictures")
    place = {scene: i for i, scene in enumerate(again.scenes)}
    assert len(place) == len(world)
    order = [place[scene] for scene in world.scenes]
    assert np.array_equal(again.pixels[order], world.pixels)


def test_one_picture_is_read_by_its_name(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    place = next(i for i, scene in enumerate(world.scenes) if scene.is_plain)
    scene = world.scenes[place]
    found = picture_of(scene.concept, scene.style, tmp_path / "pictures")
    assert found is not None and np.array_equal(found, world.pixels[place])
    assert picture_of("unicorn of glass", scene.style, tmp_path / "pictures") is None
    assert picture_of(scene.concept, scene.style, tmp_path / "nowhere") is None


def test_the_same_pictures_give_the_same_bytes_in_any_order(world: Pictures, tmp_path: Path) -> None:
    first = write_pictures(world, tmp_path / "a")
    second = write_pictures(world.take(range(len(world))[::-1]), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_sample_carries_licence_attribution_source_and_split(world: Pictures, tmp_path: Path) -> None:
    write_pictures(world, tmp_path / "pictures")
    split = {scene.file: name for scene, name in zip(world.scenes, split_of(world.scenes), strict=True)}
    seen = 0
    for record in records(tmp_path / "pictures"):
        for style, entry in record["styles"].items():  # type: ignore[attr-defined]
            assert entry["license"] == LICENSES[style]
            assert entry["attribution"] and entry["captions"]
            for picture in entry["pictures"]:
                assert picture["split"] == split[f"{entry['package']}:{picture['file']}"]
                seen += 1
    assert seen == len(world)


def test_shards_that_are_too_large_change_nothing(
    world: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(world, tmp_path / "pictures")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    monkeypatch.setattr(pictures, "LIMIT", 1000)
    with pytest.raises(UserError, match="1,000"):
        write_pictures(world, tmp_path / "pictures")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tar")} == before


def test_a_changed_picture_is_noticed(world: Pictures, tmp_path: Path) -> None:
    (path,) = write_pictures(world, tmp_path / "pictures")
    data = bytearray(path.read_bytes())
    data[data.index(b"VP8L") + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_pictures(tmp_path / "pictures")
