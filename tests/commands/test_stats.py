from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.data.images import save_png
from m2chat.data.shards import write_groups, write_shards
from m2chat.data.stats import Histogram, gather
from m2chat.schema import Image, Sample, Turn
from m2chat.text import Layout, M2ChatTokenizer, view_of

TOKENIZER = str(Path(__file__).parents[2] / "data/micro/llama")


def black(height: int, width: int, caption: str, original: tuple[int, int] = (0, 0)) -> Image:
    return Image(np.zeros((height, width, 3), np.uint8), caption, original)


TALK = Sample(
    "talk/1",
    (
        Turn("user", ("look", 0)),
        Turn("assistant", ("nice",)),
        Turn("user", ("draw two",)),
        Turn("assistant", ("one", 1, 2)),
        Turn("user", ("thanks",)),
        Turn("assistant", ("not learned",), loss=False),
    ),
    (black(8, 12, "a dog", (80, 60)), black(8, 12, "A  dog"), black(20, 10, "")),
    kind="dialogue",
    source="talk",
)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    png = save_png(np.zeros((8, 8, 3), np.uint8))
    meta = b'{"original_width": 300, "original_height": 200}'
    groups = [
        ("0", {"png": png, "txt": b"a dog", "json": meta}),
        ("1", {"png": png, "txt": b"a cat"}),
        ("2", {"png": png}),
        ("3", {"png": b"bad", "txt": b"a cow"}),
    ]
    write_groups(groups, tmp_path / "set", "pairs", 10)
    write_shards([TALK], tmp_path / "set", "talk")
    return tmp_path / "set"


def test_the_numbers(shards: Path) -> None:
    layout = Layout(M2ChatTokenizer(TOKENIZER), 8, 60)
    record = gather(str(shards), layout).record()
    assert record["shards"] == 2 and record["samples"] == 4
    assert record["kinds"] == {"caption": 3, "dialogue": 1}
    assert record["bad"] == {"no caption": 1, "undecodable picture": 1}
    assert record["replies"] == 5 and record["pictures_per_reply"] == {"0": 1, "1": 3, "2": 1}
    assert record["turns"] == {"count": 4, "median": 2, "p95": 6, "max": 6}
    assert record["pictures"] == 5 and record["sizes"] == [[8, 8, 2], [12, 8, 2], [10, 20, 1]]
    assert record["shorter_side"] == {"count": 5, "median": 8, "p95": 10, "max": 10}
    # Our own shards note every original size, img2dataset's some.
    assert record["original_shorter_side"] == {"count": 4, "median": 10, "p95": 200, "max": 200}
    assert record["share_without_caption"] == pytest.approx(1 / 6)
    assert record["share_repeated_captions"] == pytest.approx(2 / 5)  # "a dog" three times, in two spellings
    assert record["share_repeated_images"] == pytest.approx(2 / 5)
    users = [turn.text for turn in TALK.turns if turn.role == "user" and turn.text]
    assert record["user_texts"] == {"count": len(users), "different": len(set(users))} and len(users) > 1


def test_lengths_are_those_before_anything_is_cut(shards: Path) -> None:
    layout = Layout(M2ChatTokenizer(TOKENIZER), 8, 60)
    tokens = gather(str(shards), layout).record()["tokens"]
    view = view_of(TALK, 3)
    whole = len(Layout(layout.tokenizer, 8, 10_000).encode(view.request, view.reply))
    assert whole > 60 and tokens["sequence"]["max"] == whole
    assert tokens["sequence"]["count"] == 5 and tokens["sequence"]["max_tokens"] == 60
    assert 0 < tokens["sequence"]["share_over"] < 1
    assert tokens["answer"]["count"] == 2 and tokens["caption"]["count"] == 5
    assert tokens["caption"]["max"] == max(len(layout.tokenizer.encode(text)) for text in ("a dog", "A  dog", "a cat"))


def test_the_command_prints_and_writes(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stats.json"
    arguments = ["data", "stats", str(shards), "--tokenizer", TOKENIZER, "--max-tokens", "60", "--json", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 in 2 shards: 3 caption, 1 dialogue" in printed and "1 x no caption" in printed
    assert "of the sequences have more than 60 tokens" in printed and "40.0% of the captions" in printed
    assert "texts of users" in printed
    assert json.loads(out.read_text())["tokens"]["sequence"]["max_tokens"] == 60


def test_a_set_without_a_good_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups([("0", {"txt": b"x"})], tmp_path, "x", 1)
    assert main(["data", "stats", str(tmp_path), "--tokenizer", TOKENIZER]) == 0
    assert "none that is good" in capsys.readouterr().out


def test_quantiles() -> None:
    found = Histogram([*range(1, 101)])
    assert (found.quantile(0.5), found.quantile(0.95), found.quantile(1.0), found.over(90)) == (50, 95, 100, 0.1)
    assert Histogram().quantile(0.5) == 0 and Histogram().over(1) == 0.0
