from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from m2chat.data.converters.columns import ColumnPicture
from m2chat.data.converters.engine import convert
from m2chat.data.images import load_image
from m2chat.errors import UserError


def cell(raw: Any, seed: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": raw.as_bytes(raw.photo(seed), "PNG"), "path": path}


def write(raw: Any, name: str, rows: list[dict[str, Any]], group: int = 2) -> Path:
    path = raw.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return Path(path)


def edit(raw: Any, session: str, turn: int, source: tuple[int, str | None], target: tuple[int, str | None]) -> Any:
    return {
        "img_id": session, "turn_index": turn, "instruction": f"do {turn}", "mask_img": cell(raw, 99),
        "source_img": cell(raw, *source), "target_img": cell(raw, *target),
    }  # fmt: skip


def seeds(raw: Any, members: dict[str, bytes]) -> list[int]:
    """Which of `photo`'s pictures a sample holds."""
    known = {raw.as_bytes(raw.photo(seed), "PNG"): seed for seed in range(10)}
    return [known[members[name]] for name in sorted(members) if name != "json"]


def test_pairs_of_any_row_group_in_their_order(raw: Any, run: Callable[..., Any]) -> None:
    rows = [
        {"image": cell(raw, i), "text": [f"first {i}", "second"] if i else None, "artist": "me", "n": i}
        for i in range(5)
    ]
    write(raw, "data/train-00000-of-00002.parquet", rows[:3])
    write(raw, "data/train-00001-of-00002.parquet", rows[3:])
    done = run("parquet", name="mine", per_shard=2, form="instruct")
    assert [seeds(raw, members) for members in done.members] == [[1], [2], [3], [4]]
    assert done.rejects == {"000000000": "no caption"}
    for number, sample in enumerate(done.samples, 1):
        assert sample.id == f"mine/{number:09d}" and sample.kind == "instruct"
        assert sorted(sample.meta.pop("captions")) == [f"first {number}", "second"]
        assert sample.images[0].caption in (f"first {number}", "second") and sample.meta == {
            "artist": "me",
            "n": number,
        }


def test_sessions_are_put_in_order_and_pictures_sent_once(raw: Any, run: Callable[..., Any]) -> None:
    rows = [
        edit(raw, "a", 2, (1, "a1.png"), (2, "a2.png")),
        edit(raw, "b", 1, (3, None), (4, None)),
        edit(raw, "a", 1, (0, "a0.png"), (1, "a1.png")),
        edit(raw, "b", 2, (4, None), (5, None)),
        edit(raw, "c", 1, (6, "x"), (7, "x")),
        edit(raw, "d", 1, (6, "x"), (7, "y")),
        edit(raw, "d", 1, (6, "x"), (7, "z")),
    ]
    write(raw, "dev.parquet", rows)
    done = run("parquet", name="mb")
    turns = {s.id[3:]: [(turn.parts, turn.context) for turn in s.turns[::2]] for s in done.samples}
    assert turns == {
        "a": [((0, "do 1"), None), (("do 2",), 1)],
        "b": [((0, "do 1"), None), ((2, "do 2"), None)],  # without paths, what is the same is not known
        "c": [((0, "do 1"), None)],
    }
    assert [seeds(raw, members) for members in done.members] == [[0, 1, 2], [3, 4, 4, 5], [6, 7]]
    assert done.rejects == {"d": "session of turns without a number, or with one twice"}


def test_pictures_beside_the_table(raw: Any, run: Callable[..., Any]) -> None:
    kept = raw.put_photo("pics/a.jpg", 1)
    names = ["a.jpg", "../a.jpg", "b.jpg", None]
    path = write(raw, "t.parquet", [{"file": name, "words": f"w{i}"} for i, name in enumerate(names)])
    done = run("parquet", path, images=raw.path / "pics", columns="image=file,caption=words")
    assert [members["img0.jpg"] for members in done.members] == [kept]
    assert list(done.rejects.values()) == [
        "picture path leaves the folder (..): make it relative to the folder of --images", "picture missing",
        "no picture named",
    ]  # fmt: skip
    write(raw, "t.parquet", [{"image": {"bytes": None, "path": "a.jpg"}, "text": "x"}])
    assert run("parquet", path, images=raw.path / "pics", dst=raw.path / "again").members[0]["img0.jpg"] == kept


def test_columns_are_not_guessed(raw: Any, job: Callable[..., Any]) -> None:
    def fails(message: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            convert(job("parquet", **settings))

    write(raw, "train-00000-of-00001.parquet", [{"image": cell(raw, 0), "text": "a", "title": "b"}])
    fails("columns text and title could each be the caption: choose by --columns caption=text")
    fails("'picture' is no role; choose of image, caption", columns="picture=image")
    fails("has no column 'words'; it has image, text, title", columns="caption=words")
    write(raw, "test-00000-of-00001.parquet", [{"image": cell(raw, 0), "text": "a"}])
    fails("several splits: choose one by --split {test,train}")
    fails("--split dev: .* has test, train", split="dev")
    write(raw, "test-00000-of-00001.parquet", [{"png": cell(raw, 0), "label": 3}])
    fails(r"has the columns png \(struct<.*>\), label \(int64\): name those of pairs", split="test")
    (raw.path / "more").mkdir()
    fails("holds no .parquet", src=raw.path / "more")


def test_a_picture_is_read_by_any_process_and_never_of_an_older_file(raw: Any) -> None:
    path = write(raw, "t.parquet", [{"image": cell(raw, i)} for i in range(4)], group=4)
    pictures = [ColumnPicture(str(path), row, column="image") for row in (0, 3, 3, 1)]
    for picture, seed in zip(pickle.loads(pickle.dumps(pictures)), (0, 3, 3, 1), strict=True):
        assert picture.read() == raw.as_bytes(raw.photo(seed), "PNG")
    write(raw, "t.parquet", [{"image": cell(raw, i + 5)} for i in range(4)], group=4)
    assert (load_image(pictures[1].read()) == load_image(raw.as_bytes(raw.photo(8), "PNG"))).all()


@pytest.mark.fixtures
def test_magicbrush_and_instructpix2pix(run: Callable[..., Any], samples_folder: Path, tmp_path: Path) -> None:
    done = run("parquet", samples_folder / "benchmarks" / "magicbrush" / "data", name="magicbrush", max_rejects=0)
    assert [(s.id, len(s.turns), len(s.images)) for s in done.samples] == [
        ("magicbrush/900001", 4, 3),
        ("magicbrush/900002", 2, 2),
    ]
    assert done.samples[0].turns[2].parts == ("make the ball blue",) and done.samples[0].turns[2].context == 1
    folder = samples_folder / "benchmarks" / "instructpix2pix" / "data"
    done = run("parquet", folder, name="ip2p", dst=tmp_path / "ip2p", max_rejects=0)
    assert [image.caption for image in done.samples[0].images] == [
        "a cup of coffee on a table",
        "a cup of coffee and a red ball on a table",
    ]
