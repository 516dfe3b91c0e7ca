from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.data.converters.registry import FORMATS
from m2chat.data.images import save_png
from m2chat.data.shards import find_shards, open_shard, write_tar
from m2chat.data.sources import read_record, sample_of
from m2chat.text import Layout, M2ChatTokenizer, view_of
from m2chat.worlds.shapes.captions import caption_of, parse_caption
from m2chat.worlds.shapes.scenes import render, scenes_of_split

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "data" / "micro"
BACKBONE = [
    "--language-model", str(MICRO / "llama"), "--vision-encoder", str(MICRO / "clip"),
    "--adapter", str(MICRO / "adapter" / "BIAS-micro.pth"),
]  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two pictures, one of them without a caption."""
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(save_png(np.full((40, 40, 3), 90 * number, np.uint8)))
    rows = [{"file_name": "0.png", "text": "say <|img|> </s> <|IC|>"}, {"file_name": "1.png", "text": ""}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_convert_tells_what_became_of_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "data",
        "convert",
        "folder",
        str(own),
        str(own / "out"),
        "--as",
        "instruct",
        "--name",
        "my.data",
        "--workers",
        "1",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 shards, 1 x instruct, 1 pictures" in printed and "1 x no caption" in printed
    assert sorted(path.name for path in (own / "out").iterdir()) == [
        "index.json",
        "my-data-000000.tar",
        "rejects.jsonl",
    ]
    assert main(arguments) == 0 and capsys.readouterr().out == printed
    assert main([*arguments[:5], "--name", "other"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*arguments[:4], str(own / "b"), "--per-shard", "0"]) == 2
    assert "--per-shard '0': choose a whole number from 1" in capsys.readouterr().err


def test_special_tokens_in_captions_stay_words(own: Path) -> None:
    assert main(["data", "convert", "folder", str(own), str(own / "out"), "--workers", "1"]) == 0
    sample = sample_of(open_shard(find_shards(own / "out")[0]).members(0), "0", "")
    assert sample.images[0].caption == "say <|img|> </s> <|IC|>"
    tokenizer = M2ChatTokenizer(MICRO / "llama")
    view = view_of(sample, 1)
    ids = Layout(tokenizer, 8, 512).encode(view.request, view.reply).input_ids
    counts = [ids.count(token) for token in (tokenizer.img_id, tokenizer.ic_id, tokenizer.eos_id)]
    assert counts == [8, 1, 1]


def test_every_format_has_a_help_without_numpy() -> None:
    code = (
        "import sys; from m2chat.commands import main\n"
        f"for name in {list(FORMATS)!r}:\n"
        "    try: main(['data', 'convert', name, '--help'])\n"
        "    except SystemExit: pass\n"
        "sys.exit('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DST") >= len(FORMATS)


def test_every_format_is_documented() -> None:
    text = (ROOT / "docs" / "data_formats.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in text] == []


def test_missing_captions_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = scenes_of_split("train", 1)[:600:100]
    for number, scene in enumerate(scenes):
        (tmp_path / f"{number}.jpg").write_bytes(save_png(render(scene, np.random.default_rng(number))))

    def spoken(*keys: int) -> dict[str, object]:
        return {"turn": [{"__TEXT__": "look"}, *({"__MEDIA__": str(key)} for key in keys)]}

    talks = [{"conversation": [spoken(0, 1), spoken(2)]}, {"conversation": [spoken(3), spoken(4, 5)]}]
    (tmp_path / "conversations.json").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "c.jsonl").write_text('{"media_key": "4", "caption": "known"}\n')
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    arguments = ["data", "convert", "mmdialog", str(tmp_path), first, "--captions", str(tmp_path / "c.jsonl")]
    assert main([*arguments, "--text-as-caption", "--workers", "1", "--min-side", "16"]) == 0
    backbone = [*BACKBONE, "--batch-size", "4"]
    capsys.readouterr()
    assert main(["data", "caption", first, second, *backbone]) == 0
    assert "1 shards, 2 samples with 6 pictures" in capsys.readouterr().out

    before, after = (open_shard(find_shards(folder)[0]) for folder in (first, second))
    images = []
    for number in range(2):
        old, new = before.members(number), after.members(number)
        assert {name: data for name, data in old.items() if name != "json"} == {
            name: data for name, data in new.items() if name != "json"
        }
        one, other = read_record(old), read_record(new)
        assert one is not None and other is not None and one.turns == other.turns
        images += other.images
    assert [image.caption_by for image in images] == ["model:BIAS-micro"] * 4 + ["file"] + ["model:BIAS-micro"]
    assert images[4].caption == "known"
    right = [
        parse_caption(image.caption or "").get("colour") == scene.attributes["colour"]
        for i, (image, scene) in enumerate(zip(images, scenes, strict=True))
        if i != 4
    ]
    assert sum(right) >= 4, [(image.caption, caption_of(scene)) for image, scene in zip(images, scenes, strict=True)]
    index = json.loads((tmp_path / "second" / "index.json").read_text())
    assert index["samples"] == 2 and index["settings"] == {"captions": "model:BIAS-micro"}
    assert main(["data", "caption", first, first, *backbone]) == 2

    # What is there is kept if it is of the same shards, and never taken for captions of others.
    (tmp_path / "second" / "index.json").unlink()
    assert main(["data", "caption", first, second, *backbone]) == 0
    assert json.loads((tmp_path / "second" / "index.json").read_text()) == index
    shard = find_shards(first)[0]
    shard.write_bytes(shard.read_bytes() + bytes(512))
    assert main(["data", "caption", first, second, *backbone]) == 2
    assert "captions of other shards" in capsys.readouterr().err
    assert main(["data", "caption", second, first, *backbone]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_missing_captions_of_pairs_are_written_too(tmp_path: Path) -> None:
    scenes = scenes_of_split("train", 1)[:400:100]
    groups = []
    for number, scene in enumerate(scenes):
        members = {"png": save_png(render(scene, np.random.default_rng(number))), "json": b'{"width": 32}'}
        groups.append((f"{number}", members | ({"txt": b"known"} if number == 0 else {})))
    groups.append(("4", {"json": b"{}"}))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    write_tar(first / "0.tar", groups)
    assert main(["data", "caption", str(first), str(second), *BACKBONE, "--batch-size", "3"]) == 0
    after = open_shard(second / "0.tar")
    assert [entry.fault for entry in after.entries] == [""] * 4
    texts = [after.members(number)["txt"].decode() for number in range(4)]
    assert texts[0] == "known" and after.members(0)["json"] == b'{"width": 32}'
    assert json.loads(after.members(1)["json"]) == {
        "width": 32, "caption": texts[1], "caption_by": "model:BIAS-micro"
    }  # fmt: skip
    right = [
        parse_caption(text).get("colour") == scene.attributes["colour"]
        for text, scene in zip(texts[1:], scenes[1:], strict=True)
    ]
    assert sum(right) >= 2, texts
    index = json.loads((second / "index.json").read_text())
    assert index["samples"] == 4 and index["rejects"] == {"no picture": 1}
