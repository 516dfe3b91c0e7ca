from __future__ import annotations

import argparse
import inspect as python_inspect
import re
from pathlib import Path

import numpy as np
import pytest

from m2chat.commands import main
from m2chat.commands.data.inspect import lines_of
from m2chat.commands.data.layout import add_layout, layout_of
from m2chat.data.images import save_png
from m2chat.data.preview import Preview, previews_of, spread_samples
from m2chat.data.preview_page import preview_page
from m2chat.data.shards import write_groups, write_shards
from m2chat.schema import Image, Sample, Turn
from m2chat.text import Layout, M2ChatTokenizer, view_of

ROOT = Path(__file__).parents[2]
TOKENIZER = str(ROOT / "data/micro/llama")


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(M2ChatTokenizer(TOKENIZER), 8, 192)


def talk() -> Sample:
    """A shown picture, small talk, and a reply of two pictures."""
    images = tuple(
        Image(np.zeros((20, 30 + k, 3), np.uint8), caption) for k, caption in enumerate(("shown", "c1", "c2"))
    )
    turns = (
        Turn("user", (0, "look at this")),
        Turn("assistant", ("nice",)),
        Turn("user", ("draw two",)),
        Turn("assistant", ("one", 1, "and two", 2)),
    )
    return Sample("talk/<b>", turns, images, kind="dialogue", source="talk")


def pieces(reply: Preview, span: str) -> list[str]:
    return [piece.text for piece in reply.pieces if piece.span == span]


def test_the_spans_are_those_of_training(layout: Layout) -> None:
    first, second = previews_of(talk(), layout)
    assert (first.turn, first.view.context, first.target, first.cut) == (1, 0, None, 0)
    assert pieces(first, "answer") == ["nice"] and pieces(first, "mark") == ["<s>", "</s>"]
    assert (second.turn, second.view.context, second.target) == (3, 0, 1)
    assert pieces(second, "answer") == ["one"] and pieces(second, "caption") == ["c1"]
    assert pieces(second, "image") == ["<|img|> × 1", "<|img|> × 7"]
    assert pieces(second, "other") == ["and two", "c2", "<|img|> × 1", "<|img|> × 7"]
    assert [piece.scored for piece in second.pieces if piece.span == "image"] == [True, False]
    assert pieces(second, "prompt")[0].endswith("[picture 1: shown] look at this\nAssistant: nice\n\n### Response:")
    for reply in (first, second):
        view = view_of(reply.sample, reply.turn)
        assert reply.tokens == len(layout.encode(view.request, view.reply))
        assert all(piece.scored is False for piece in reply.pieces if piece.span in ("prompt", "cut"))


def test_what_is_cut_stands_at_its_place(layout: Layout) -> None:
    turns = (*talk().turns[:2], Turn("user", ("word " * 200 + "end",)), Turn("assistant", ("so be it",)))
    reply = previews_of(Sample("x", turns, talk().images, kind="dialogue", source="x"), layout)[1]
    assert reply.tokens <= 192 and reply.cut > 100
    prompt = "".join(piece.text for piece in reply.pieces if piece.span in ("prompt", "cut"))
    assert "Assistant: nice" in prompt and prompt.count("word") == 200 and "end" in prompt
    assert "word end" in "".join(pieces(reply, "cut")) and "Assistant: nice" in "".join(pieces(reply, "cut"))
    assert "Instruction:\nword word" in pieces(reply, "prompt")[-2] + pieces(reply, "prompt")[-1]
    assert pieces(reply, "answer") == ["so be it"]


def test_the_terminal_shows_spans_with_and_without_colours(layout: Layout) -> None:
    sample = talk()
    turns = (Turn("user", ("clear \x1b[2J the screen",)), sample.turns[3])
    (reply,) = previews_of(Sample("x/1", turns, sample.images, kind="dialogue", source="x"), layout)
    plain = lines_of(reply, 192, colour=False)
    assert plain[0].startswith("x/1 turn 1, dialogue: ") and "target picture 2, 31 x 20" in plain[0]
    assert "  answer *   one" in plain and "  caption *  c1" in plain and "  image *    <|img|> × 1" in plain
    assert "\x1b" not in "".join(plain) and any("clear \\x1b[2J the" in line for line in plain)
    coloured = lines_of(reply, 192, colour=True)
    assert "  answer *   \x1b[32mone\x1b[0m" in coloured and "\x1b[2J" not in "".join(coloured)


def test_the_page_is_whole_and_safe(layout: Layout) -> None:
    sample = talk()
    turns = (Turn("user", ('<script>alert("x")</script>', 0)), sample.turns[3])
    nasty = Image(np.zeros((300, 900, 3), np.uint8), '"><img src=x onerror=alert(1)>', (3000, 9000))
    shown = Sample("x", turns, (nasty, *sample.images[1:]), kind="dialogue", source="<i>")
    replies = previews_of(shown, layout)
    page = preview_page(replies, "a & <b>", 192)
    assert "<script" not in page and "<img src=x" not in page and "<i>," not in page and "a &amp; &lt;b&gt;" in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert not re.search(r"//|url\(|@import|<link", re.sub(r'src="data:[^"]*"', "", page))
    sources = re.findall(r'<img src="([^"]{22})', page)
    assert len(sources) == 3 and all(source.startswith("data:image/") for source in sources)
    assert page.count('<figure class="context">') == 1 and page.count('<figure class="target">') == 1
    assert "900 × 300 of 9000 × 3000" in page
    assert "left:33.33%;top:0.00%;width:33.33%;height:100.00%" in page
    assert "$" not in re.sub(r'src="[^"]*"', "", page)
    for span in ("answer", "caption", "image", "other", "mark"):
        assert f'<span class="{span} scored"' in page


def test_pictures_still_to_come_are_not_shown(layout: Layout) -> None:
    first, second = previews_of(talk(), layout)
    assert preview_page([first], "x", 192).count("<figure") == 1
    assert preview_page([second], "x", 192).count("<figure") == 3


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    png = save_png(np.zeros((8, 8, 3), np.uint8))
    groups = [(f"{i:02d}", {"png": png if i % 3 else b"bad", "txt": f"number {i}".encode()}) for i in range(30)]
    write_groups(groups, tmp_path / "set", "pairs", 10)
    write_shards([talk()], tmp_path / "set", "talk")
    return tmp_path / "set"


def test_samples_come_from_all_over(shards: Path) -> None:
    ids = [sample.id.rpartition("/")[2] for sample in spread_samples(str(shards), 4)]
    assert ids == ["01", "07", "16", "23"]
    assert [sample.id for sample in spread_samples(str(shards), 1000)][-1] == "talk/<b>"
    assert len(spread_samples(str(shards), 1000)) == 21


def test_the_command(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "inspect", str(shards), "--tokenizer", TOKENIZER]
    assert main([*arguments, "-n", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("5 shards, 31 samples: 21 good") or printed.startswith("4 shards, 31 samples: 21 good")
    assert "pairs-000000/01 turn 1, caption: " in printed and "of 192 tokens" in printed
    assert main([*arguments, "-n", "0"]) == 0
    assert "turn 1" not in capsys.readouterr().out
    page = tmp_path / "sheet.html"
    assert main([*arguments, "--quick", "-n", "100", "--max-tokens", "80", "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"22 replies are shown in {page}\n"
    assert page.read_text(encoding="utf-8").count("<article>") == 22


def test_lengths_follow_a_configuration(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["data", "inspect", str(shards), "--config", "configs/stage2.yaml", "-n", "1", "--quick"]) == 0
    assert "of 320 tokens" in capsys.readouterr().out
    paper = ["data", "inspect", str(shards), "--config", "configs/paper/stage1.yaml", "-n", "1", "--quick"]
    assert main(paper) == 2
    assert "data/weights" in capsys.readouterr().err
    assert main([*paper, "--tokenizer", TOKENIZER]) == 0
    printed = capsys.readouterr().out
    assert "of 512 tokens" in printed and "<|img|> × 31" in printed


@pytest.mark.parametrize("text", ["", "[1]", "data: 3", "model: {init_args: {backbone: nowhere.yaml}}", "a: ["])
def test_a_configuration_that_is_none(
    shards: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert main(["data", "inspect", str(shards), "--quick", "--config", str(config)]) == 2
    assert "--config: " in capsys.readouterr().err


def test_the_defaults_are_those_of_the_data_module() -> None:
    from m2chat.data.datamodule import M2ChatDataModule

    parameters = python_inspect.signature(M2ChatDataModule).parameters
    options = argparse.ArgumentParser()
    add_layout(options)
    layout = layout_of(options.parse_args(["--tokenizer", TOKENIZER]))
    assert parameters["max_tokens"].default == layout.max_tokens and parameters["prompt"].default == layout.format
