from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2chat.checksums import sha256
from m2chat.data.faults import check
from m2chat.data.images import save_png
from m2chat.data.manifest import Listed, write_manifest
from m2chat.data.shards import write_shards
from m2chat.data.sources import to_members
from m2chat.schema import Sample

PNG = save_png(np.zeros((8, 8, 3), np.uint8))
Files = list[tuple[str, bytes]]


def write_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pair(key: str, **changed: bytes) -> Files:
    members = {"png": PNG, "txt": b"words", "json": b"{}", **changed}
    return [(f"{key}.{suffix}", data) for suffix, data in members.items()]


def found(path: Path) -> list[tuple[str, str, str]]:
    return [(fault.key, fault.member, fault.reason) for fault in check(path).faults]


def bomb(width: int) -> bytes:
    """The head of a PNG that claims to be large."""
    return PNG[:16] + width.to_bytes(4, "big") + (9000).to_bytes(4, "big") + PNG[24:]


UNDECODABLE = "undecodable picture (UnidentifiedImageError)"
APART = "files of the sample do not stand together"


@pytest.mark.parametrize(
    ("files", "faults"),
    [
        pytest.param(pair("a") + pair("b"), [], id="clean"),
        pytest.param([("a.PNG", PNG), ("a.txt", b"words")], [], id="upper case"),
        pytest.param(pair("a", png=b""), [("a", "png", "empty picture file")], id="empty picture"),
        pytest.param(pair("a", png=b"<html>"), [("a", "png", UNDECODABLE)], id="no picture at all"),
        pytest.param(pair("a", json=b"{"), [("a", "json", "broken json")], id="broken json"),
        pytest.param(pair("a", json=b"[]"), [("a", "json", "json is not an object")], id="other json"),
        pytest.param(pair("a", txt=b"\xff\xfe"), [("a", "txt", "not UTF-8")], id="not UTF-8"),
        pytest.param(pair("a", txt=b" \n"), [("a", "", "no caption")], id="no caption"),
        pytest.param([("a.txt", b"words")], [("a", "", "no picture")], id="no picture"),
        pytest.param(
            [*pair("a"), ("a.pyd", b"pickle")], [("a", "pyd", "unknown suffix, never read")], id="pickle"
        ),
        pytest.param(
            [*pair("a"), ("a.jpg", PNG)],
            [("a", "png", "never read beside the sample's other files")],
            id="two pictures",
        ),
        pytest.param([*pair("a"), ("a.txt", b"other")], [("a", "txt", "duplicate file")], id="duplicate file"),
        pytest.param(pair("a") + pair("b") + [("a.json", b"{}")],
                     [("a", "", APART), ("a", "", "no picture")], id="interleaved"),
        pytest.param(
            [("../../x.png", PNG), ("../../x.txt", b"words")],
            [("../../x", "png", "name leaves the folder"), ("../../x", "txt", "name leaves the folder")],
            id="traversal",
        ),
        pytest.param([("/x.png", PNG), ("b/x.txt", b"words"), ("b/x.png", PNG)],
                     [("/x", "png", "name leaves the folder"), ("/x", "", "no caption")], id="absolute"),
        pytest.param(
            [("a.b.png", PNG), ("a.b.txt", b"words")],
            [("a", "", "no picture"), ("a", "b.png", "dot in the key"), ("a", "b.txt", "dot in the key")],
            id="dot in the key",
        ),
        pytest.param(
            [("a.img0.png", PNG)],
            [("a", "", "no picture"), ("a", "img0.png", "no JSON names it, never read")],
            id="no json",
        ),
        pytest.param(
            pair("a", json=b'{"schema": "m2c/1", "kind": "talk"}'),
            [
                ("a", "json", "json is not m2c/1"),
                ("a", "png", "never read beside the sample's other files"),
                ("a", "txt", "never read beside the sample's other files"),
            ],
            id="not m2c",
        ),
        pytest.param([], [("", "", "no sample")], id="nothing"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_place(tmp_path: Path, files: Files, faults: list[tuple[str, str, str]]) -> None:
    assert found(write_tar(tmp_path / "a.tar", files)) == faults


def test_a_picture_that_claims_too_much_is_told(tmp_path: Path) -> None:
    ((key, member, reason),) = found(write_tar(tmp_path / "a.tar", pair("a", png=bomb(9000))))
    assert (key, member) == ("a", "png") and "picture" in reason


def test_links_are_told_and_never_followed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pair("a"))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert found(path) == [("b", "png", "link or device, never read")]


def test_a_damaged_tar_is_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", pair("a") + pair("b")).read_bytes()

    def reasons(data: bytes) -> list[str]:
        path = tmp_path / "damaged.tar"
        path.write_bytes(data)
        return [reason for _, _, reason in found(path)]

    assert reasons(whole) == []
    assert reasons(b"") == ["empty shard file"]
    assert reasons(b"\x07" * 4096) == ["not a tar"]
    assert reasons(b"hello") == ["not a tar"]
    assert reasons(whole[:520]) == ["cut off"]
    assert reasons(whole[:1030]) == ["cut off", "no caption"]
    assert reasons(whole[: 6 * 1024]) == ["cut off"]
    assert "unreadable rest of the shard" in reasons(whole[: 3 * 1024] + b"\x07" * 512 + whole[3 * 1024 + 512 :])
    assert reasons(whole + whole) == ["unreadable rest of the shard"]
    for end in range(0, 6 * 1024, 97):
        assert reasons(whole[:end]), end


def m2c(sample: Sample, name: str) -> Files:
    return [(f"{name}.{suffix}", data) for suffix, data in to_members(sample).items()]


def test_our_schema_is_read_to_the_letter(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    files = dict(m2c(make_dialogue(0), "a"))
    assert found(write_tar(tmp_path / "a.tar", list(files.items()))) == []
    without = [(name, data) for name, data in files.items() if name != "a.img1.png"]
    assert found(write_tar(tmp_path / "a.tar", without)) == [("a", "img1.png", "picture missing")]
    more = [*files.items(), ("a.img2.png", PNG), ("a.txt", b"words")]
    assert found(write_tar(tmp_path / "a.tar", more)) == [
        ("a", "img2.png", "no JSON names it, never read"),
        ("a", "txt", "never read beside the sample's other files"),
    ]
    record = json.loads(files["a.json"])
    record["images"][0]["sha256"] = hashlib.sha256(files["a.img0.png"]).hexdigest()
    files["a.json"] = json.dumps(record).encode()
    assert found(write_tar(tmp_path / "a.tar", list(files.items()))) == []
    files["a.img0.png"] = PNG
    assert found(write_tar(tmp_path / "a.tar", list(files.items()))) == [
        ("a", "img0.png", "checksum differs from the JSON")
    ]


def test_an_id_may_occur_once_in_the_set(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    write_tar(tmp_path / "a.tar", m2c(make_dialogue(0), "a"))
    write_tar(tmp_path / "b.tar", m2c(make_dialogue(0), "b") + m2c(make_dialogue(1), "c"))
    (fault,) = check(tmp_path).faults
    assert (fault.shard, fault.key, fault.reason) == (str(tmp_path / "b.tar"), "b", "duplicate id")
    assert "'talk/0'" in fault.detail and "a.tar" in fault.detail


def test_the_set_is_compared_with_its_index(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    paths = write_shards([make_dialogue(i) for i in range(4)], tmp_path, "talk", 1)
    listed = [Listed(path.name, 1, path.stat().st_size, sha256(path)) for path in paths]
    write_manifest(tmp_path, listed, {"dialogue": 4})
    assert check(tmp_path).faults == []

    with tarfile.open(paths[0]) as tar:
        first = tar.getmembers()[0]
    flipped = bytearray(paths[0].read_bytes())
    flipped[first.offset_data + first.size] ^= 1  # in what fills the block, where nothing else would notice
    paths[0].write_bytes(flipped)
    with paths[1].open("ab") as file:
        file.write(bytes(512))
    paths[2].rename(tmp_path / "other.tar")
    assert {(Path(fault.shard).name, fault.reason) for fault in check(tmp_path).faults} == {
        ("talk-000000.tar", "checksum differs from index.json"),
        ("talk-000001.tar", "length differs from index.json"),
        ("talk-000002.tar", "missing, though index.json lists it"),
        ("other.tar", "not in index.json"),
    }
    (tmp_path / "index.json").write_text("{")
    assert "unreadable index.json" in check(tmp_path).counts


def test_the_number_of_samples_is_compared_too(tmp_path: Path, make_dialogue: Callable[[int], Sample]) -> None:
    (path,) = write_shards([make_dialogue(0)], tmp_path)
    write_manifest(tmp_path, [Listed(path.name, 2, path.stat().st_size, sha256(path))], {"dialogue": 2})
    (fault,) = check(tmp_path).faults
    assert fault.reason == "number of samples differs from index.json" and fault.detail == "1, listed 2"


@pytest.mark.fixtures
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("badjpeg", ("000000001", "jpg", UNDECODABLE)),
        ("badjson", ("000000001", "json", "broken json")),
        ("badutf", ("000000001", "txt", "not UTF-8")),
        ("bomb", ("000000001", "png", "undecodable picture (DecompressionBombError)")),
        ("dotkey", ("a", "b.jpg", "dot in the key")),
        ("dup", ("000000001", "jpg", "duplicate file")),
        ("garb", ("", "", "not a tar")),
        ("inter", ("000000000", "", APART)),
        ("nojpg", ("000000001", "", "no picture")),
        ("sym", ("ln", "jpg", "link or device, never read")),
        ("trav", ("../../etc/x", "jpg", "name leaves the folder")),
        ("trunc", ("", "", "unreadable rest of the shard")),
        ("zero", ("", "", "empty shard file")),
        ("upper", None),
    ],
)
def test_the_hostile_set(samples_folder: Path, name: str, fault: tuple[str, str, str] | None) -> None:
    faults = found(samples_folder / "bad_tars" / f"{name}.tar")
    assert fault in faults if fault else not faults


@pytest.mark.fixtures
def test_real_shards_have_one_fault(samples_folder: Path) -> None:
    assert found(samples_folder / "img2dataset_shards") == [("000020", "", "no caption")]


@pytest.mark.fixtures
def test_pictures_that_cannot_be_read_are_told(samples_folder: Path, tmp_path: Path) -> None:
    pictures = sorted((samples_folder / "bad_images").iterdir())
    files = []
    for number, path in enumerate(pictures):
        suffix = "png" if path.suffix in (".gif", ".tif") else path.suffix[1:]
        files += [(f"{number}.{suffix}", path.read_bytes()), (f"{number}.txt", b"words")]
    bad = {pictures[int(key)].name for key, _, _ in found(write_tar(tmp_path / "a.tar", files))}
    assert {"empty.jpg", "html.jpg", "truncated.jpg", "pillow_zero_width.gif", "pillow_16bit.cropped.tif"} <= bad
    assert not bad & {"alpha.png", "cmyk.jpg", "exif6.jpg", "i16.png", "palette.gif", "tiny.jpg", "webp.webp"}
