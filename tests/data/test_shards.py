from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.index import Entries, Entry
from m2chat.data.shards import find_shards, open_shard, write_shards
from m2chat.data.shards import write_tar as write_shard
from m2chat.data.sources import BadSample, sample_of
from m2chat.errors import UserError
from m2chat.schema import Sample


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_our_schema_survives_a_round_trip(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    samples = [make_dialogue(i) for i in range(3)]
    images = tuple(replace(image, full_caption=f"{image.caption} at night") for image in samples[1].images)
    samples[1] = replace(samples[1], images=images)
    (path,) = write_shards(samples, tmp_path)
    shard = open_shard(path)
    assert [entry.kind for entry in shard.entries] == ["dialogue"] * 3
    assert [entry.replies for entry in shard.entries] == [[1, 3]] * 3
    for index, sample in enumerate(samples):
        read = sample_of(shard.members(index), shard.entries[index].key, "other")
        assert (read.id, read.kind, read.source, read.turns, read.meta) == (
            sample.id, sample.kind, sample.source, sample.turns, sample.meta,
        )  # fmt: skip
        for image, truth in zip(read.images, sample.images, strict=True):
            np.testing.assert_array_equal(image.pixels, truth.pixels)
            assert (image.caption, image.full_caption) == (truth.caption, truth.full_caption)
            assert image.crop == truth.crop
        assert [image.original_size for image in read.images] == [(80, 60), (8, 8)]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    first, second = (write_shards([make_dialogue(0)], tmp_path / name)[0] for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_headers_hold_nothing_of_this_machine(tmp_path: Path) -> None:
    """The bytes of former versions, whose writer was Python's: shards that were generated then keep their checksums."""
    groups: list[tuple[str, dict[str, bytes]]] = [
        ("000", {"txt": b"x" * 700, "_a.json": b"{}"}),
        ("ключ", {"img0.png": b"", "json": b"[]"}),
    ]
    assert write_shard(tmp_path / "ours.tar", groups[:1]) == 1
    with tarfile.open(tmp_path / "plain.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("000._a.json", b"{}"), ("000.txt", b"x" * 700)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()
    assert write_shard(tmp_path / "both.tar", groups) == 2
    assert [entry.key for entry in open_shard(tmp_path / "both.tar").entries] == ["000", "ключ"]
    with pytest.raises(ValueError, match="must not hold one"):
        write_shard(tmp_path / "dot.tar", [("a.b", {"txt": b""})])
    assert not list(tmp_path.glob("*dot*"))


def test_the_index_is_kept_and_renewed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.txt", b"one")])
    assert open_shard(path) == open_shard(path)
    beside = tmp_path / "a.tar.idx.json"
    assert len(beside.read_text().splitlines()) == 1 + 1
    write_tar(path, [("x.txt", b"one"), ("y.txt", b"two")])
    os.utime(path, (1, 1))
    assert [entry.key for entry in open_shard(path).entries] == ["x", "y"]
    for spoilt in ("{", beside.read_text()[:-20], beside.read_text().replace('"x"', '"z"')):
        beside.write_text(spoilt)
        assert [entry.key for entry in open_shard(path).entries] == ["x", "y"]


def test_only_neighbours_form_a_sample_and_odd_files_are_counted(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("a.pyd", b"pickle"), ("a.txt", b"4"), ("C.JPG", b"5")]
    shard = open_shard(write_tar(tmp_path / "a.tar", files))
    assert [(entry.key, [m[0] for m in entry.members]) for entry in shard.entries] == [
        ("a", ["jpg"]), ("b", ["jpg"]), ("a", ["txt"]), ("C", ["jpg"]),
    ]  # fmt: skip
    assert shard.skipped == {"unknown suffix": 1, "duplicate": 1}
    assert shard.members(2) == {"txt": b"3"}


def test_keys_cannot_leave_a_folder(tmp_path: Path) -> None:
    files = [("../../etc/x.txt", b""), ("/abs/y.txt", b""), ("-5.txt", b"")]
    keys = [entry.key for entry in open_shard(write_tar(tmp_path / "a.tar", files)).entries]
    assert keys == ["etc_x", "abs_y", "-5"]


@pytest.mark.parametrize("name", ["empty", "missing.tar", "*.tar"])
def test_a_path_without_shards_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"train 'cc': path=.*give a \.tar"):
        Source(SourceConfig("cc", str(tmp_path / name)), "train")


def test_shards_are_found_by_file_folder_and_pattern(shards: Path) -> None:
    folder = find_shards(shards / "captions")
    assert [path.name for path in folder] == [f"cc-{i:06d}.tar" for i in range(4)]
    assert find_shards(f"{shards}/cap*/cc-*.tar") == folder
    assert find_shards(folder[1]) == [folder[1]]


def test_kinds_are_chosen_by_the_index(shards: Path) -> None:
    with pytest.raises(UserError, match=r"no sample of the kinds \['edit'\]"):
        Source(SourceConfig("talk", str(shards / "talk"), kinds=["edit"]))
    with pytest.raises(UserError, match="choose from caption"):
        Source(SourceConfig("talk", str(shards / "talk"), kinds=["edits"]))
    assert len(Source(SourceConfig("talk", str(shards / "talk"), kinds=["dialogue"]))) == 9


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"words"}, "no picture"),
        ({"json": b"{"}, "broken json"),
        ({"json": b"[" * 100_000}, "broken json"),
        ({"json": b"[]"}, "not an object"),
        ({"jpg": b"junk", "txt": b"words"}, "undecodable"),
        ({"jpg": b"junk", "txt": b" \n"}, "no caption"),
        ({"json": b'{"schema": "m2c/1"}'}, "not m2c/1"),
        ({"json": b'{"schema": "m2c/1", "kind": "edit", "images": [], "turns": []}'}, "no reply"),
    ],
)
def test_bad_samples_say_why(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        sample_of(members, "key", "source")


@pytest.mark.parametrize("image", [True, -1, 2, "0", None])
def test_a_turn_cannot_point_to_a_picture_that_is_not_there(
    make_dialogue: Callable[[int], Sample], image: object
) -> None:
    from m2chat.data.sources import to_members

    members = to_members(make_dialogue(0))
    record = json.loads(members["json"])
    record["turns"][0]["content"][1]["image"] = image
    with pytest.raises(BadSample, match="not m2c/1"):
        sample_of({**members, "json": json.dumps(record).encode()}, "key", "source")


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_our_shards_too(shards: Path) -> None:
    import webdataset

    for name in ("captions", "talk"):
        source = Source(SourceConfig(name, str(shards / name)))
        paths = [shard.path for shard in source.shards]
        theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
        ours = [(entry.key, shard.members(k)) for shard in source.shards for k, entry in enumerate(shard.entries)]
        assert [(row["__key__"], {k: v for k, v in row.items() if k[:2] != "__"}) for row in theirs] == ours


@pytest.mark.fixtures
def test_img2dataset_shards_are_read_in_place(samples_folder: Path, tmp_path: Path) -> None:
    tars = [(tmp_path / path.name, path) for path in find_shards(samples_folder / "img2dataset_shards")]
    for copy, path in tars:
        copy.write_bytes(path.read_bytes())
    source = Source(SourceConfig("cc3m", str(tmp_path)))
    counts = Counter(source.faults)
    for shard, index, turn in source.replies():
        sample = source.read(shard, index)
        caption = sample.images[0].caption
        assert sample.kind == "caption" and sample.id.startswith("cc3m/0") and turn == 1
        assert sample.turns[0].text == f"Draw {caption}" and sample.turns[1].parts == (0,)
        record = dict(sample.meta)
        assert sample.images[0].original_size == (record["original_height"], record["original_width"])
        counts["good"] += 1
    assert counts == {"good": 16, "no caption": 1}


@pytest.mark.fixtures
def test_hostile_tars_give_their_good_samples(samples_folder: Path, tmp_path: Path) -> None:
    good: dict[str, int] = {}
    for path in sorted((samples_folder / "bad_tars").glob("*.tar")):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        shard = open_shard(copy)
        good[path.stem] = 0
        for index, entry in enumerate(shard.entries):
            try:
                sample_of(shard.members(index), entry.key, "bad")
            except BadSample:
                continue
            good[path.stem] += 1
    assert good == {
        "badjpeg": 5, "badjson": 5, "badutf": 6, "bomb": 5, "dotkey": 6, "dup": 6, "garb": 0, "inter": 4, "nojpg": 5,
        "sym": 6, "trav": 8, "trunc": 2, "upper": 7, "zero": 0,
    }  # fmt: skip


def test_webdataset_reads_our_shards(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    from webdataset import WebDataset

    (path,) = write_shards([make_dialogue(0), make_dialogue(1)], tmp_path)
    read = list(WebDataset(str(path), shardshuffle=False))
    assert [item["__key__"] for item in read] == ["000000000", "000000001"]
    assert json.loads(read[0]["json"])["schema"] == "m2c/1" and read[0]["img1.png"][:4] == b"\x89PNG"


def test_a_file_s_name_that_is_no_text_stays_in_the_index() -> None:
    entry = Entry("a", "caption", [1], [("\udc80.jpg", 512, 10), ("txt", 1024, 5)], [7])
    (read,) = Entries.of([entry])
    assert read == entry
