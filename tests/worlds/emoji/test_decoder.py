"""What the decoder draws is chosen by a seed, judged, and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2chat.errors import UserError
from m2chat.worlds.emoji import command
from m2chat.worlds.emoji.captions import caption_of
from m2chat.worlds.emoji.decoder import (
    SETS,
    DrawnTruths,
    chosen_pictures,
    draw_truths,
    facts_of,
    save_sheets,
    table_of,
    write_report,
)
from m2chat.worlds.emoji.judge import PictureJudge
from m2chat.worlds.emoji.scenes import STYLES, Pictures


@pytest.fixture(scope="module")
def judge(few: Pictures, trained_judge: Path) -> PictureJudge:
    return PictureJudge.load(trained_judge, few)


def drawn_as(judge: PictureJudge, truth: Pictures, pixels: np.ndarray) -> DrawnTruths:
    return DrawnTruths(truth, pixels, truth.pixels, judge.read(pixels))


def test_pictures_of_a_set_are_its_splits_and_follow_from_the_seed(world: Pictures) -> None:
    styles = tuple(STYLES)
    of = {name: chosen_pictures(world, name, 99, styles) for name in SETS}
    assert len(of["core"]) == 0  # none of these concepts is of the core list
    assert set(of["pairs"].scenes) <= set(world.of("pair").scenes) and len(of["pairs"])
    assert set(of["all"].scenes) <= set(world.of("train").scenes)
    kinds = [(scene.concept, scene.style) for scene in of["all"].scenes]
    assert len(kinds) == len(set(kinds)) == len({(s.concept, s.style) for s in world.of("train").scenes})
    assert chosen_pictures(world, "all", 5, styles).scenes == chosen_pictures(world, "all", 5, styles).scenes
    assert chosen_pictures(world, "all", 5, styles, seed=1).scenes != chosen_pictures(world, "all", 5, styles).scenes
    assert {scene.style for scene in chosen_pictures(world, "all", 99, ("noto",)).scenes} == {"noto"}


def test_rates_tell_right_from_wrong_from_nothing(judge: PictureJudge, few: Pictures) -> None:
    right = facts_of(drawn_as(judge, few, few.pixels), judge)
    assert {right[key] for key in ("top1", "style", "nearest_top1", "true_top1", "vae_top1")} == {1.0}
    order = [
        next(j for j, t in enumerate(few.scenes) if t.style == s.style and t.concept != s.concept) for s in few.scenes
    ]
    wrong = facts_of(drawn_as(judge, few, few.pixels[order]), judge)
    assert (wrong["top1"], wrong["style"], wrong["nearest_top1"], wrong["true_top1"]) == (0.0, 1.0, 0.0, 1.0)
    noise = np.random.default_rng(0).integers(0, 256, few.pixels.shape, dtype=np.uint8)
    nothing = facts_of(drawn_as(judge, few, noise), judge)
    assert (nothing["top1"], nothing["top5"], nothing["style"]) == (0.0, 0.0, 0.0)


def test_the_table_stands_between_its_marks_and_can_be_renewed(
    judge: PictureJudge, few: Pictures, tmp_path: Path
) -> None:
    path = tmp_path / "pocket.md"
    path.write_text("# Pocket\n\nbefore\n")
    facts = {"core": facts_of(drawn_as(judge, few, few.pixels), judge)}
    for _ in range(2):
        write_report(facts, {"seed": 0}, path)
        text = path.read_text()
        assert text.count(table_of(facts)) == 1 and text.startswith("# Pocket\n\nbefore\n") and "seed 0" in text
    assert "| core list, seen | 6 | 100.0 | 100.0 | 100.0 |" in text


def test_sheets_show_truth_beside_what_was_drawn_and_the_blind_one_no_answer(
    judge: PictureJudge, few: Pictures, tmp_path: Path
) -> None:
    save_sheets(drawn_as(judge, few, few.pixels[::-1]), tmp_path, count=4, blind=3, columns=4)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 68, 2 * 132, 3)
    assert np.array_equal(sheet[2:66, 2:66], few.pixels[0]) and np.array_equal(sheet[2:66, 66:130], few.pixels[-1])
    assert Image.open(tmp_path / "blind.png").size == (4 * 132, 148)
    rows = json.loads((tmp_path / "blind.json").read_text())
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert rows[0]["caption"] == caption_of(few.scenes[0]) and rows[0]["judge"] == few.scenes[-1].attributes


def test_without_a_unet_the_remedy_is_named(judge: PictureJudge, few: Pictures, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unet` trains it"):
        draw_truths(tmp_path, judge, few)


def test_the_command_draws_with_what_was_trained_here_else_with_what_is_shipped(
    tmp_path: Path, few: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, ...]] = []

    def evaluate(root: Path, judges: Path, *_: Any, lora: Path | None, vae: Path, **__: Any) -> Any:
        used.append(tuple(str(path) for path in (root, judges, lora, vae)))
        return {}, {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("m2chat.worlds.emoji.decoder.evaluate", evaluate)
    monkeypatch.setattr("m2chat.worlds.emoji.recipe.make.world_pictures", lambda *_: few)
    trained, shipped = "data/pocket/training/weights", "data/pocket"
    Path(shipped, "sdxl/unet").mkdir(parents=True)
    for of in ("sdxl", "few_step"):
        command.main(["decoder", "--of", of])
    Path(trained, "sdxl/unet").mkdir(parents=True)
    command.main(["decoder"])
    Path(trained, "judge").mkdir()
    command.main(["decoder"])
    assert used == [
        (f"{shipped}/sdxl", shipped, "None", f"{shipped}/sdxl/vae"),
        (f"{shipped}/sdxl", shipped, f"{shipped}/decoders/lcm_lora", f"{shipped}/sdxl/vae"),
        (f"{trained}/sdxl", shipped, "None", f"{trained}/sdxl/vae"),
        (f"{trained}/sdxl", trained, "None", f"{trained}/sdxl/vae"),
    ]
    shutil.rmtree("data")
    command.main(["decoder"])
    assert used[-1][0] == f"{trained}/sdxl"  # which the error then names
