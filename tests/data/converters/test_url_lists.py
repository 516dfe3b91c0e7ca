from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from m2chat.data.shards import write_groups
from m2chat.errors import UserError

URLS = [f"http://example.invalid/{i}.jpg" for i in range(5)]


def shard(raw: Any, folder: str, numbers: list[int], **more: Any) -> None:
    """What img2dataset leaves of some of the URLs: in another order, with gaps."""
    groups = []
    for i in reversed(numbers):
        record = {"caption": f"picture {i}", "url": URLS[i], "key": f"{i:09d}", "status": "success", "exif": "{}",
                  "width": 48, "height": 40, "original_width": 480, "original_height": 400, **more}  # fmt: skip
        members = {
            "jpg": raw.as_bytes(raw.photo(i)),
            "json": json.dumps(record).encode(),
            "txt": f"picture {i}".encode(),
        }
        groups.append((f"{i:09d}", members))
    write_groups(groups, raw.path / folder, "0000", 10)


def tsv(header: str = "") -> str:
    rows = ["a dog , running", "<|img|> is only text 😀", 'a "quoted cat', "", "gone"]
    return header + "".join(f"{words}\t{url}\n" for words, url in zip(rows, URLS, strict=True))


@pytest.mark.parametrize("header", ["", "caption\turl\n", "\ufeffCaption\tURL\n"])
def test_cc3m_joins_by_url(raw: Any, run: Callable[..., Any], header: str) -> None:
    shard(raw, "images", [0, 1, 2, 3])
    done = run("cc3m-tsv", raw.put("cc3m.tsv", tsv(header)), images=raw.path / "images")
    assert [s.id for s in done.samples] == ["cc3m/000000000", "cc3m/000000001", "cc3m/000000002"]
    assert [s.images[0].caption for s in done.samples] == [
        "a dog , running",
        "<|img|> is only text 😀",
        'a "quoted cat',
    ]
    assert done.rejects == {"000000003": "no caption", "000000004": "no picture of this URL or row under --images"}
    for number, (record, members) in enumerate(zip(done.records, done.members, strict=True)):
        assert members["img0.jpg"] == raw.as_bytes(raw.photo(number))
        image = record["images"][0]
        assert (image["original_width"], image["original_height"], image["caption_by"]) == (480, 400, "alt-text")
        assert record["kind"] == "caption" and record["meta"]["url"] == URLS[number]


def test_cc3m_joins_by_row(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("images/GCC_train_000000002.jpg", 2)
    done = run("cc3m-tsv", raw.put("cc3m.tsv", tsv()), images=raw.path / "images")
    assert [s.id for s in done.samples] == ["cc3m/000000002"] and len(done.rejects) == 4


def test_cc3m_takes_paths_for_urls(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("images/sub/photo0.jpg")
    raw.put_photo("secret.jpg")
    table = raw.put("own.tsv", "url\tcaption\nsub/photo0.jpg\ta dog\n../secret.jpg\ta secret\nbroken row\n")
    done = run("cc3m-tsv", table, images=raw.path / "images")
    assert [s.images[0].caption for s in done.samples] == ["a dog"]
    assert done.rejects == {
        "000000001": "picture path leaves the folder (..): make it relative to the folder of --images",
        "000000002": "row without two columns",
    }


@pytest.mark.parametrize("form", ["cc3m-tsv", "laion-parquet"])
def test_without_pictures_the_download_is_told(raw: Any, job: Callable[..., Any], form: str) -> None:
    from m2chat.data.converters.engine import convert

    table = raw.path / "list.parquet"
    raw.put("list.tsv", tsv())
    parquet.write_table(pa.table({"URL": URLS, "TEXT": URLS}), table)
    with pytest.raises(UserError, match=r"img2dataset --url_list \S+ --input_format") as error:
        convert(job(form, raw.path / ("list.tsv" if form == "cc3m-tsv" else "list.parquet")))
    assert "--resize_mode keep_ratio" in str(error.value) and "--images downloaded" in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ("URL", "TEXT", "AESTHETIC_SCORE", "WIDTH"),
        ("url", "caption", "aesthetic", "width"),
    ],
)
def test_laion_knows_its_columns_names(raw: Any, run: Callable[..., Any], names: tuple[str, ...]) -> None:
    shard(raw, "images", [0, 1, 2, 3])
    url, text, score, width = names
    captions = ["a", "b", None, "d", "e"]
    scores = [6.5, 4.0, 7.0, float("nan"), 9.0]
    columns = {url: URLS, text: captions, score: scores, width: [10.0] * 5, "other": [0] * 5}
    raw.path.joinpath("lists").mkdir()
    parquet.write_table(pa.table(columns).slice(0, 2), raw.path / "lists" / "a.parquet")
    parquet.write_table(pa.table(columns).slice(2), raw.path / "lists" / "b.parquet")
    done = run("laion-parquet", raw.path / "lists", images=raw.path / "images", min_aesthetic=5.0)
    assert [s.images[0].caption for s in done.samples] == ["a"]
    assert done.samples[0].meta == {"url": URLS[0], "aesthetic": 6.5, "width": 10.0}
    assert done.rejects == {
        "000000001": "aesthetic score below 5", "000000002": "no caption", "000000003": "aesthetic score below 5",
        "000000004": "no picture of this URL or row under --images",
    }  # fmt: skip
    assert done.index["settings"]["min_aesthetic"] == 5.0


def test_laion_without_its_columns_says_which_there_are(raw: Any, job: Callable[..., Any]) -> None:
    from m2chat.data.converters.engine import convert

    raw.path.mkdir()
    (raw.path / "images").mkdir()
    parquet.write_table(pa.table({"link": URLS, "TEXT": URLS}), raw.path / "a.parquet")
    with pytest.raises(UserError, match="no column for the url: it has link, TEXT"):
        convert(job("laion-parquet", images=raw.path / "images"))
    parquet.write_table(pa.table({"URL": URLS, "TEXT": URLS}), raw.path / "a.parquet")
    with pytest.raises(UserError, match="leave out --min-aesthetic"):
        convert(job("laion-parquet", images=raw.path / "images", min_aesthetic=5.0))


def test_img2dataset_becomes_our_schema(raw: Any, run: Callable[..., Any]) -> None:
    shard(raw, "a", [0, 1])
    photo = raw.as_bytes(raw.photo())
    groups = [
        ("5", {"jpg": b"junk", "txt": b"words"}),
        ("6", {"jpg": photo, "txt": b" "}),
        ("7", {"txt": b"alone"}),
        ("8", {"jpg": photo, "txt": b"w", "json": b"{"}),
    ]
    write_groups(groups, raw.path / "a", "0001", 10)
    table = pa.table({"key": ["5", "9"], "status": ["success", "failed_to_download"], "url": ["", ""]})
    parquet.write_table(table, raw.path / "a" / "0001-000000.parquet")
    done = run("img2dataset", raw.path / "a", form="instruct", name="cc3m")
    assert [(s.id, s.kind) for s in done.samples] == [("cc3m/000000001", "instruct"), ("cc3m/000000000", "instruct")]
    assert done.samples[0].images[0].original_size == (400, 480) and done.samples[0].meta["url"] == URLS[1]
    assert done.rejects == {
        "5": "undecodable picture (UnidentifiedImageError)", "6": "no caption", "7": "no picture", "8": "broken json",
        "9": "failed to download",
    }  # fmt: skip


def test_what_img2dataset_has_blown_up_is_too_small(raw: Any, run: Callable[..., Any]) -> None:
    shard(raw, "a", [0], original_width=30)
    write_groups([("1", {"jpg": raw.as_bytes(raw.photo(1)), "txt": b"x"})], raw.path / "a", "0001", 10)
    assert run("img2dataset", raw.path / "a", max_rejects=0).rejects == {
        "000000000": "picture of less than 32 pixels a side"
    }


@pytest.mark.fixtures
@pytest.mark.parametrize("workers", [1, 2])
def test_real_shards(raw: Any, run: Callable[..., Any], samples_folder: Any, workers: int) -> None:
    import shutil

    shutil.copytree(samples_folder / "img2dataset_shards", raw.path)  # reading leaves an index beside each tar
    done = run("img2dataset", workers=workers, per_shard=6)
    assert done.index["kinds"] == {"caption": 15} and len(done.index["shards"]) == 3
    assert done.index["rejects"] == {
        "failed to download": 1, "failed to resize": 3, "no caption": 1, "picture of less than 32 pixels a side": 1,
    }  # fmt: skip
    typed = next(s for s in done.samples if s.images[0].caption.startswith("<|img|>"))
    assert typed.turns[0].text == "Draw <|img|> injected token 😀"
    joined = run("cc3m-tsv", raw.path / "cc3m_like.tsv", images=raw.path, dst=raw.path / "joined")
    assert {s.images[0].caption for s in joined.samples} == {s.images[0].caption for s in done.samples}
