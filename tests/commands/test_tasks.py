"""The commands that use a model, run as a user runs them, with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2chat.commands import command_parser, main
from m2chat.commands.options import decoder_changes
from m2chat.data.images import load_image, save_png
from m2chat.models.decoder_config import DecoderConfig
from m2chat.worlds.shapes.scenes import Scene, Shape, render
from m2chat.worlds.talks import Findings

SCENE = Scene(Shape("square", "yellow"), "black", None, "large", "middle")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "before.png").write_bytes(save_png(render(SCENE, np.random.default_rng(0))))
    return tmp_path


def test_options_of_the_image_decoder_are_settings_of_it() -> None:
    given = ["--preset", "fast", "--guidance-interval", "0.1", "0.8", "--lora", "a.safetensors=0.5"]
    changes = decoder_changes(command_parser().parse_args(["draw", "a ring", *given]))
    assert changes["lora"] == [{"path": "a.safetensors", "weight": 0.5}]
    assert DecoderConfig(**changes).interval == (0.1, 0.8) != DecoderConfig(preset="fast").interval


@pytest.mark.parametrize(
    ("arguments", "name", "pictures"),
    [
        (["draw", "a small red ring at the top on a white background", "--seeds", "0", "1"], "draw", 2),
        (["edit", "before.png", "turn it into a ring"], "edit", 1),
        (["story", "tell me how it ripens : a ring on a white background", "--frames", "2"], "story", 2),
    ],
)
def test_a_task_prints_its_words_and_writes_its_pictures(
    arguments: list[str], name: str, pictures: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--steps", "2", "--out", "out"]) == 0
    said = capsys.readouterr().out
    for number in range(pictures):
        assert Image.open(here / "out" / f"{name}-{number}.png").size == (32, 32)
        assert f"out/{name}-{number}.png: " in said
    assert (here / "out" / f"{name}.png").is_file()
    assert (here / "out" / "story-beside-decoder.png").is_file() == (name == "story")
    if name == "edit":  # a second command overwrites nothing
        before = (here / "out" / "edit-0.png").read_bytes()
        assert main([*arguments[:2], "paint it red", "--steps", "2", "--out", "out"]) == 0
        assert "out/edit_1-0.png: " in capsys.readouterr().out and (here / "out" / "edit_1.png").is_file()
        assert (here / "out" / "edit-0.png").read_bytes() == before


def test_the_image_decoder_may_be_changed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["draw", "a small red ring at the top on a white background", "--out", "out"]
    for options in (["--preset", "fast"], ["--scheduler", "lcm"], ["--height", "48", "--width", "32"]):
        assert main([*ask, "--steps", "2", *options]) == 0
    drawn = [load_image((here / "out" / f"{name}-0.png").read_bytes()) for name in ("draw", "draw_1", "draw_2")]
    assert [picture.shape for picture in drawn] == [(32, 32, 3), (32, 32, 3), (48, 32, 3)]
    assert not np.array_equal(drawn[0], drawn[1])


def test_dialogue_lines_may_show_a_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dialogue", "before.png::which colour does it have ?", "--steps", "2"]) == 0
    assert capsys.readouterr().out.strip()


def test_lens_draws_a_page_and_writes_to_tensorboard(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lens", "turn it into a ring", "--picture", "before.png", "--steps", "2", "--tensorboard", "log"]) == 0
    page = load_image((here / "m2chat_pictures" / "lens.png").read_bytes())
    assert page.shape[0] > 600 and page.shape[1] > 1000 and page.std() > 10
    assert list((here / "log").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "nowhere.png", "paint it red"], "picture 'nowhere.png': there is no such file"),
        (["edit", "broken.png", "paint it red"], "give a JPEG, PNG, WebP or GIF file"),
        (["draw", "a ring", "--weights", "nowhere.ckpt"], "--weights 'nowhere.ckpt': there is no such file"),
        (["draw", "a ring", "--backbone", "nowhere.yaml"], "--backbone 'nowhere.yaml': there is no such file"),
        (["draw", "a ring", "--scheduler", "eular"], "decoder.scheduler='eular': choose one of ddim"),
        (["draw", "a ring", "--lora", "style.safetensors=much"], "--lora style.safetensors=much: write FILE=WEIGHT"),
        (["draw", "a ring", "--lora", "style.safetensors"], "there is no style.safetensors"),
        (["draw", "a ring", "--height", "30"], "height=30: VAE and UNet need a multiple of 8; the nearest is 24 or 32"),
        (["chat", "--width", "30"], "width=30: VAE and UNet need a multiple of 8"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "broken.png").write_bytes(b"no picture")
    assert main(arguments) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert message in error and error.startswith("error: ")
    assert all(line.startswith("Model: micro, ") for line in before), "what is refused once the model is loaded"


@pytest.mark.slow
def test_measure_prints_every_rate_with_what_it_must_reach(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--count", "12", "--wishes", "1", "--steps", "4", "--out", "measure.json"]) == 0
    rows = {row["measure"]: row for row in json.loads((here / "measure.json").read_text())["rows"]}
    said = capsys.readouterr().out
    for name, own in (("right: edits", 3), ("decision: none where none is due", None), ("kept: subject of stories", 6)):
        assert name in said and rows[name]["bar"] is not None
        assert own is None or rows[name]["n"] == own
    assert rows["decoder right: edits"]["percent"] >= 50, "the decoder alone draws what it is told, even in four steps"


def test_findings_hold_against_their_bars() -> None:
    findings = Findings({"decision: x": [True] * 19 + [False], "right: y": [True, False]}, {"decision: x": 95.0})
    first, second = findings.rows()
    assert first["holds"] is True and first["percent"] == 95.0 and first["n"] == 20
    assert second["holds"] is None and second["low"] <= 50 <= second["high"]
