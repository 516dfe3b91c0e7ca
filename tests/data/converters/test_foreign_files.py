"""Raw data of other shapes, encodings and habits: read with certainty, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from m2chat.commands import main
from m2chat.data.converters.engine import convert
from m2chat.data.faults import check
from m2chat.data.shards import write_groups
from m2chat.errors import UserError

ALPACA = {"instruction": "Sag „Grüße“.", "input": "", "output": "Grüße\u2028und\x85mehr"}


def item(name: object, question: str, *files: str) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Red."}]
    return {"id": name, "conversations": said, "image": list(files)}


# Joins


def numbered(raw: Any, names: list[str], rows: int = 3) -> Path:
    """A list of URLs without pictures of these URLs, and pictures with numbers in their names."""
    for name in names:
        raw.put_photo(f"images/{name}.jpg", int(name[-1]))
    return Path(raw.put("list.tsv", "".join(f"row {i}\thttp://example.invalid/{i}.jpg\n" for i in range(rows))))


@pytest.mark.parametrize(
    ("names", "rows_from", "captions"),
    [
        (["photo0", "photo2"], None, ["row 0", "row 2"]),
        (["3", "2"], None, ["row 1", "row 2"]),
        (["1", "2"], 1, ["row 0", "row 1"]),
        (["GCC_train_000000001"], None, ["row 1"]),
    ],
)
def test_rows_are_joined_where_it_is_certain(
    raw: Any, run: Callable[..., Any], names: list[str], rows_from: int | None, captions: list[str]
) -> None:
    done = run("cc3m-tsv", numbered(raw, names), images=raw.path / "images", rows_from=rows_from)
    assert [sample.images[0].caption for sample in done.samples] == captions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1", "2"], r"numbers 1 to 2, and the list has 3 rows, which fits .* from 0 and from 1.*--rows-from"),
        (["0", "3"], "numbers 0 to 3, and the list has 3 rows, which fits no way"),
        (["1", "01"], "1 numbers of files occur twice, the first is 1"),
        (["img0", "photo1"], "different beginnings"),
    ],
)  # fmt: skip
def test_rows_are_not_guessed(raw: Any, job: Callable[..., Any], names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(job("cc3m-tsv", numbered(raw, names), images=raw.path / "images"))


ROWS = [f"row {i}\thttp://example.invalid/{i}.jpg" for i in range(4)]


def listed(raw: Any, lines: list[str], numbers: list[int]) -> Path:
    for number in numbers:
        raw.put_photo(f"images/{number}.jpg", number)
    return Path(raw.put("list.tsv", "".join(f"{line}\n" for line in lines)))


@pytest.mark.parametrize(
    "lines",
    [
        [*ROWS[:2], "", *ROWS[2:]],
        [*ROWS[:2], "half a row", *ROWS[2:]],
        [*ROWS[:2], "a row\twithout a URL", *ROWS[2:]],
        ["# my list", *ROWS],
        ["Caption text\tLink", "something\texample.com/x.png", *ROWS],
    ],
)
@pytest.mark.parametrize("rows_from", [None, 0])
def test_lines_that_may_count_as_rows_are_not_guessed(
    raw: Any, job: Callable[..., Any], lines: list[str], rows_from: int | None
) -> None:
    path = listed(raw, lines, [0, 1, 2, 3])
    with pytest.raises(UserError, match=r"numbers 0 to 3, .* list has [56] rows, .* 4 rows have a URL, and [12] other"):
        convert(job("cc3m-tsv", path, images=raw.path / "images", rows_from=rows_from))


@pytest.mark.parametrize(
    ("lines", "numbers", "captions"),
    [
        ([*ROWS, ""], [0, 1, 2, 3], ["row 0", "row 1", "row 2", "row 3"]),
        (["# my list", "", "Caption\tURL", *ROWS], [0, 3], ["row 0", "row 3"]),
        # Each of the five lines has a number: the last picture's is behind the last row's if fewer count.
        ([*ROWS[:2], "", *ROWS[2:]], [0, 1, 3, 4], ["row 0", "row 1", "row 2", "row 3"]),
    ],
)
def test_other_lines_leave_a_certain_join_as_it_is(
    raw: Any, run: Callable[..., Any], lines: list[str], numbers: list[int], captions: list[str]
) -> None:
    done = run("cc3m-tsv", listed(raw, lines, numbers), images=raw.path / "images")
    assert [sample.images[0].caption for sample in done.samples] == captions


def test_rows_of_several_files_are_counted_in_the_order_of_their_numbers(
    raw: Any, run: Callable[..., Any], job: Callable[..., Any]
) -> None:
    (raw.path / "lists").mkdir(parents=True)
    for part in (1, 2, 10):
        table = pa.table({"URL": [f"http://example.invalid/{part}.jpg"], "TEXT": [f"part {part}"]})
        parquet.write_table(table, raw.path / f"lists/part-{part}.parquet")
    for number in range(3):
        raw.put_photo(f"images/{number}.jpg", number)
    done = run("laion-parquet", raw.path / "lists", images=raw.path / "images")
    assert [sample.images[0].caption for sample in done.samples] == ["part 1", "part 2", "part 10"]
    raw.put_photo("one/0.jpg")
    with pytest.raises(UserError, match="over all of the 3 files, or within each"):
        convert(job("laion-parquet", raw.path / "lists", images=raw.path / "one", dst=raw.path / "two"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Beschreibung\tAdresse\n\na dog\thttp://e.invalid/0.jpg\n", "begins with Beschreibung, Adresse"),
        ("Beschreibung\tAdresse\na dog\thttp://e.invalid/0.jpg\n", "begins with Beschreibung, Adresse"),
        ("Beschreibung\tDatei\na dog\t0.jpg\n", "begins with Beschreibung, Datei"),
        ("http://e.invalid/0.jpg\ta dog\n", "the first column holds the places"),
    ],
)
def test_an_unknown_header_is_no_row(raw: Any, job: Callable[..., Any], table: str, message: str) -> None:
    raw.put_photo("images/0.jpg")
    with pytest.raises(UserError, match=message):
        convert(job("cc3m-tsv", raw.put("list.tsv", table), images=raw.path / "images"))


def test_marks_and_pictures_must_fit(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("0.jpg")
    raw.put_photo("1.jpg", 1)
    items = [
        item("fits", "<image> or <image>?", "0.jpg", "1.jpg"),
        item("few", "<image> or <image>?", "0.jpg"),
        item("many", "<image>?", "0.jpg", "1.jpg", "1.jpg"),
        item("none", "What is <image>?"),
        {**item("answer", "Which?", "0.jpg", "1.jpg"), "conversations": [
            {"from": "human", "value": "Like <image>."}, {"from": "gpt", "value": "Here: <image>"}]},
        {**item("words", "Which?", "0.jpg"), "conversations": [
            {"from": "human", "value": "Like <image>."}, {"from": "gpt", "value": "See <image>"}]},
    ]  # fmt: skip
    done = run("llava", raw.put("x.json", items))
    assert [[turn.parts for turn in sample.turns] for sample in done.samples] == [
        [(0, "or", 1, "?"), ("Red.",)], [("Like", 0, "."), ("Here:", 1)],
    ]  # fmt: skip
    assert done.rejects == {
        "few": "2 <image> marks, 1 pictures", "many": "1 <image> marks, 3 pictures",
        "none": "1 <image> marks, 0 pictures", "words": "2 <image> marks, 1 pictures",
    }  # fmt: skip


def test_parts_of_a_story_need_not_stand_together(raw: Any, run: Callable[..., Any]) -> None:
    for number in range(2):
        raw.put_photo(f"images/{number}.jpg", number)

    def part(story: object, photo: object, place: object) -> list[dict[str, Any]]:
        row = {"story_id": story, "photo_flickr_id": photo, "worker_arranged_photo_order": place}
        return [{**row, "text": f"{story} {place}"}]

    rows = [part(7, "1", "1"), part("8", "0", 0), part("7", "0", "0"), part(8, "1", 1), part(9, None, 0)]
    rows += [part(10, "0", 0), part(10, "1", 0), part(11, "0", None)]
    raw.put("sis/train.story-in-sequence.json", {"annotations": rows})
    done = run("vist")
    assert {s.id: [turn.text for turn in s.turns[1:]] for s in done.samples} == {
        "vist/7": ["7 0", "7 1"],
        "vist/8": ["8 0", "8 1"],
    }
    order = "story of parts without an order, or with one twice"
    assert done.rejects == {"9": "part without story_id or photo_flickr_id", "10": order, "11": order}


def test_captions_that_join_nothing_or_twice(raw: Any, job: Callable[..., Any]) -> None:
    raw.put_photo("0.jpg")
    path = raw.put("x.json", [item("a", "<image>?", "0.jpg")])
    rows = [{"media_key": "0", "caption": "red"}, {"media_key": "0", "caption": "blue"}]
    with pytest.raises(
        UserError, match=r"none of its media_keys occurs in the data: they are like '0', and .* '0\.jpg'"
    ):
        convert(job("llava", path, captions=raw.put_lines("c.jsonl", rows[:1])))
    with pytest.raises(UserError, match=r"1 lines give another caption .* the first is '0'"):
        convert(job("llava", path, captions=raw.put_lines("c.jsonl", rows)))


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("form", ["list", "lines", "printed"])
def test_marked_encodings_are_read(raw: Any, run: Callable[..., Any], encoding: str, form: str) -> None:
    plain = json.dumps(ALPACA, ensure_ascii=False)
    text = {
        "list": f"[{plain},\n{plain}]",
        "lines": f"{plain}\r\n{plain}\r\n",
        "printed": json.dumps([ALPACA] * 2, indent=1),
    }
    done = run("alpaca", raw.put("a.json", text[form].encode(encoding)))
    assert [s.turns[0].text for s in done.samples] == [ALPACA["instruction"]] * 2


def test_other_encodings_are_named(raw: Any, run: Callable[..., Any], job: Callable[..., Any]) -> None:
    good, bad = (json.dumps({**ALPACA, "output": words}, ensure_ascii=False) for words in ("hello", "café"))
    lines = f"{good}\n{bad}\n".replace("„Grüße“", "hello").encode("cp1252")
    reason = "not UTF-8: name the file's encoding by --encoding, such as cp1252, or save it as UTF-8"
    assert run("alpaca", raw.put("a.jsonl", lines)).rejects == {"1": reason}
    done = run("alpaca", raw.put("b.jsonl", lines), encoding="cp1252", dst=raw.path / "b")
    assert [s.turns[1].text for s in done.samples] == ["hello", "café"]
    with pytest.raises(UserError, match=r"c\.json is not UTF-8"):
        convert(job("alpaca", raw.put("c.json", f"[{bad}]".encode("cp1252")), dst=raw.path / "c"))
    with pytest.raises(UserError, match=r"d\.json is not utf-16"):
        convert(job("alpaca", raw.put("d.json", b"\xff\xfe[\0\x00\xd8"), dst=raw.path / "d"))
    table = raw.put("e.tsv", "a café\thttp://e.invalid/1.jpg\n".encode("latin-1"))
    (raw.path / "images").mkdir()
    with pytest.raises(UserError, match="1 times: not UTF-8: name the file's encoding"):
        convert(job("cc3m-tsv", table, images=raw.path / "images", dst=raw.path / "e"))


def test_the_file_of_captions_has_the_encoding_too(raw: Any, run: Callable[..., Any], job: Callable[..., Any]) -> None:
    raw.put_photo("0.jpg")
    path = raw.put("x.json", [item("a", "<image>?", "0.jpg")])
    captions = raw.put("c.jsonl", '{"media_key": "0.jpg", "caption": "café"}'.encode("cp1252"))
    with pytest.raises(UserError, match=r"c\.jsonl is not UTF-8: name the file's encoding by --encoding"):
        convert(job("llava", path, captions=captions))
    (sample,) = run("llava", path, captions=captions, encoding="cp1252", dst=raw.path / "two").samples
    assert sample.images[0].caption == "café"


def test_bytes_that_are_replaced_in_place_are_counted(raw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    photo = raw.as_bytes(raw.photo())
    groups = [(str(k), {"jpg": photo, "txt": text.encode("cp1252")}) for k, text in enumerate(("café", "plain", "é"))]
    write_groups(groups, raw.path, "0000", 10)
    tokenizer = str(Path(__file__).parents[3] / "data/micro/llama")
    for action in (["stats"], ["inspect", "-n", "0"]):
        assert main(["data", *action, str(raw.path), "--tokenizer", tokenizer]) == 0
        assert "2 captions have bytes that are not UTF-8" in capsys.readouterr().out


def test_a_caption_of_img2dataset_keeps_its_letters(raw: Any, run: Callable[..., Any]) -> None:
    photo = raw.as_bytes(raw.photo())
    groups = [
        ("1", {"jpg": photo, "txt": b"caf\xe9", "json": '{"caption": "café"}'.encode()}),
        ("2", {"jpg": photo, "txt": b"caf\xe9"}),
    ]
    write_groups(groups, raw.path, "0000", 10)
    done = run("img2dataset")
    assert [s.images[0].caption for s in done.samples] == ["café"] and done.rejects == {"2": "caption is not UTF-8"}


# Shapes


SIS, COCO = "sis/train.story-in-sequence.json", "annotations/captions_val2014.json"
STRANGERS = {
    "images": [{"id": 1, "file_name": "a"}],
    "annotations": [{"id": 1, "image_id": 5, "caption": "x"}],
}


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("magicbrush", "edit_sessions.json", [{"img_id": 1}], "is a list, and an object was expected"),
        ("instructpix2pix", "seeds.json", {"1": ["2"]}, "is an object, and a list was expected"),
        ("vist", SIS, {"stories": []}, "no list 'annotations': its keys are stories"),
        ("vist", SIS, {"annotations": [{"image_id": 1}]}, r"annotation 0 is no part .* has image_id"),
        ("coco-captions", COCO, {"images": [], "annotations": [7]}, r"entry 0 of 'annotations' .* has int"),
        ("coco-captions", COCO, STRANGERS, r"none of the 1 image_id .* 5 and 1"),
        ("mmdialog-captioned", "raw.json", {"a": 1}, "is an object, and a list was expected"),
        (
            "alpaca",
            "raw.json",
            [{"question": "a", "answer": "b"}],
            r"none of 1 records .* 1 times: item is not Alpaca's",
        ),
        ("alpaca", "raw.json", [], "no record of alpaca"),
        ("alpaca", "raw.json", "", "no record of alpaca"),
    ],
)
def test_files_of_another_shape_are_one_clear_error(
    raw: Any, job: Callable[..., Any], kind: str, name: str, content: Any, message: str
) -> None:
    path = raw.put(name, content)
    (raw.path / "val2014").mkdir()
    with pytest.raises(UserError, match=message):
        convert(job(kind, path if name == "raw.json" else None))


def test_what_keeps_little_fails_and_can_be_taken_all_the_same(raw: Any, job: Callable[..., Any]) -> None:
    raw.put_photo("a.jpg")
    rows = [{"file_name": name, "text": "x"} for name in ("a.jpg", "b.jpg", "c.jpg", "/d.jpg")]
    raw.put_lines("metadata.jsonl", rows)
    with pytest.raises(
        UserError, match=r"3 of 4 records became no sample; the commonest reason, 2 times: picture missing"
    ):
        convert(job("folder", max_rejects=0.5))
    folder = job("folder").dst
    assert len((folder / "rejects.jsonl").read_text().splitlines()) == 3 and not (folder / "index.json").exists()
    assert convert(job("folder", max_rejects=0.75))["samples"] == 1
    raw.put_lines("metadata.jsonl", rows[1:])
    with pytest.raises(UserError, match="none of 3 records became a sample"):
        convert(job("folder", dst=raw.path / "none"))
    raw.put_lines("metadata.jsonl", rows[:1])  # a conversion that kept nothing binds to nothing
    assert convert(job("folder", dst=raw.path / "none"))["samples"] == 1


# Reasons and ids


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("C:\\pictures\\a.jpg", "picture path is absolute"),
        ("..\\a.jpg", "picture path leaves the folder"),
        ("sub\\a.jpg", "its path has \\ for /"),
        ("http://e.invalid/a.jpg", "picture is a URL"),
        ("sub", "picture path is a folder"),
        ("x" * 300, "picture unreadable (File name too long)"),
        ("\ud800.jpg", "picture path is no name of a file"),
    ],
)
def test_each_cause_has_its_reason(raw: Any, job: Callable[..., Any], path: str, reason: str) -> None:
    raw.put_photo("sub/a.jpg")
    with pytest.raises(UserError) as error:
        convert(job("llava", raw.put_lines("x.jsonl", [item("a", "<image>?", path)])))
    assert reason in str(error.value)


def test_ids_that_repeat_or_lack_are_told_apart(raw: Any, run: Callable[..., Any]) -> None:
    talk = [{"turn": [{"__TEXT__": "hi"}]}, {"turn": [{"__TEXT__": "you"}]}]
    ids: list[Any] = [4, None, 4, "4-2", "", 4]
    raw.put_lines("conversations.json", [{"conversation_id": name, "conversation": talk} for name in ids])
    done = run("mmdialog")
    names = [s.id for s in done.samples]
    assert names == [f"mmdialog/{name}" for name in ("4", "1", "4-2", "4-2-2", "4-3", "4-4")]
    assert not check(done.folder).faults


def test_the_same_keys_in_every_shard(raw: Any, run: Callable[..., Any]) -> None:
    for number in range(2):
        write_groups([("0", {"jpg": raw.as_bytes(raw.photo(number)), "txt": b"x"})], raw.path, f"{number}", 10)
    assert [s.id for s in run("img2dataset", name="mine").samples] == ["mine/0", "mine/0-2"]


def test_a_story_without_an_image_id(raw: Any, run: Callable[..., Any]) -> None:
    raw.put_photo("a.jpg")
    good = {"caption": "x", "image_id": 1, "sequence_index": 0}
    raw.put("train_cleaned.json", {"1": [good], "2": [{**good, "image_id": None}], "3": [{**good, "image_id": "9"}]})
    raw.put("train_image_mapping.json", {"1": "a.jpg", "None": "a.jpg"})
    done = run("vist-cleaned")
    assert [s.id for s in done.samples] == ["vist/1"]
    assert done.rejects == {"2": "part without image_id", "3": "image is not in the mapping"}


# Tables


def test_broken_tables_are_one_clear_error(raw: Any, job: Callable[..., Any]) -> None:
    (raw.path / "images").mkdir(parents=True)
    table = pa.table({"URL": ["http://e.invalid/0.jpg"], "TEXT": ["x"]})
    parquet.write_table(table, raw.path / "b.parquet")
    whole = (raw.path / "b.parquet").read_bytes()
    for data, message in ((b"", r"b\.parquet has 0 bytes"), (whole[:-40], r"b\.parquet is broken or no parquet")):
        raw.put("b.parquet", data)
        with pytest.raises(UserError, match=message):
            convert(job("laion-parquet", images=raw.path / "images"))
    write_groups([("0", {"jpg": raw.as_bytes(raw.photo()), "txt": b"x"})], raw.path / "s", "0", 10)
    raw.put("s/0-000000.parquet", whole[:50])
    with pytest.raises(UserError, match=r"0-000000\.parquet is broken or no parquet"):
        convert(job("img2dataset", raw.path / "s"))


def test_scores_as_text_and_parts_without_rows(raw: Any, run: Callable[..., Any]) -> None:
    urls = [f"http://e.invalid/{i}.jpg" for i in range(3)]
    for number, url in enumerate(urls):
        raw.put_photo(f"images/{number}.jpg")
        raw.put(f"images/{number}.json", {"url": url})
    (raw.path / "lists").mkdir()
    parquet.write_table(pa.table({"other": pa.array([], pa.null())}), raw.path / "lists" / "a.parquet")
    table = pa.table({"URL": urls, "TEXT": ["x"] * 3, "aesthetic": ["6.5", "4", "high"]})
    parquet.write_table(table, raw.path / "lists" / "b.parquet")
    done = run("laion-parquet", raw.path / "lists", images=raw.path / "images", min_aesthetic=5.0)
    assert [s.meta["aesthetic"] for s in done.samples] == [6.5]
    assert done.rejects == {"000000001": "aesthetic score below 5", "000000002": "aesthetic score is no number"}


def test_a_column_of_numbers_is_no_caption(raw: Any, job: Callable[..., Any]) -> None:
    raw.put_photo("a.jpg")
    raw.put_lines("metadata.jsonl", [{"file_name": "a.jpg", "text": 5}])
    parquet.write_table(pa.table({"image": [raw.as_bytes(raw.photo())], "caption": [0.5]}), raw.path / "pairs.parquet")
    parquet.write_table(pa.table({"URL": ["http://e.invalid/0.jpg"], "TEXT": [7]}), raw.path / "list.parquet")
    for kind, path in (("folder", None), ("parquet", "pairs.parquet"), ("laion-parquet", "list.parquet")):
        with pytest.raises(UserError, match="1 times: caption is a number, no text"):
            convert(job(kind, path and raw.path / path, images=raw.path, dst=raw.path / kind))


def test_csv_of_other_habits(raw: Any, run: Callable[..., Any], job: Callable[..., Any]) -> None:
    raw.put_photo("a.jpg")
    raw.put("metadata.csv", f'file_name,caption,page\na.jpg,"é, ü",{"x" * 200_000}\n'.encode("utf-16"))
    (sample,) = run("folder").samples
    assert sample.images[0].caption == "é, ü" and len(sample.meta["page"]) == 200_000
    for head, message in (
        ("file_name\ttext", "by tabulators"),
        ("name,text", "has the columns name, text: its first row"),
    ):
        raw.put("metadata.csv", f"{head}\n")
        with pytest.raises(UserError, match=message):
            convert(job("folder", dst=raw.path / "other"))
