"""What every world must do, by the `World` that others see: captions that are read, a judge, requests to try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m2chat.world import Attributes, Target, World, find_world
from m2chat.worlds.emoji import judge as emoji_judge
from m2chat.worlds.emoji.captions import caption_of
from m2chat.worlds.emoji.pictures import write_pictures
from m2chat.worlds.emoji.scenes import Pictures
from m2chat.worlds.shapes.captions import caption_of as shapes_caption
from m2chat.worlds.shapes.scenes import all_scenes, render


@dataclass(frozen=True)
class Known:
    """A world, and pictures whose captions and attributes are known."""

    world: World
    captions: list[str]
    attributes: list[Attributes]
    pictures: list[NDArray[np.uint8]]

    def targets(self, generated: list[NDArray[np.uint8] | None]) -> list[Target]:
        rows = zip(self.captions, self.pictures, generated, self.attributes, strict=True)
        return [Target(caption, truth, drawn, attributes, ()) for caption, truth, drawn, attributes in rows]


@pytest.fixture(params=["shapes", "emoji"])
def known(
    request: pytest.FixtureRequest, few: Pictures, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Known]:
    world = find_world(request.param)
    if request.param == "shapes":
        scenes = all_scenes(1)[::400] + all_scenes(2)[::2000]
        captions, pictures = [shapes_caption(scene) for scene in scenes], [render(scene) for scene in scenes]
        yield Known(world, captions, [scene.attributes for scene in scenes], pictures)
        return
    monkeypatch.chdir(judged)  # the emoji world's judge and pictures lie below data/pocket
    for cached in (emoji_judge.world_judge, emoji_judge.caption_reader):
        cached.cache_clear()
    yield Known(world, [caption_of(s) for s in few.scenes], [s.attributes for s in few.scenes], list(few.pixels))
    for cached in (emoji_judge.world_judge, emoji_judge.caption_reader):
        cached.cache_clear()


@pytest.fixture(scope="session")
def judged(few: Pictures, trained_judge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data/pocket`` of a few pictures and the judge that knows them."""
    root = tmp_path_factory.mktemp("world")
    write_pictures(few, root / "data" / "pocket" / "pictures")
    (root / "data" / "pocket" / "judge").symlink_to(trained_judge)
    return root


def test_captions_say_what_they_name(known: Known) -> None:
    for caption, attributes in zip(known.captions, known.attributes, strict=True):
        assert known.world.named_in(caption) == attributes
    assert known.world.named_in("the weather report for tomorrow") == {}


def test_true_pictures_are_read_and_noise_and_absence_are_nothing(known: Known) -> None:
    assert known.world.seen_in(known.pictures) == known.attributes
    noise = np.random.default_rng(0).integers(0, 256, (3, *known.pictures[0].shape), dtype=np.uint8)
    assert known.world.seen_in([*noise, None]) == [{}] * 4
    assert known.world.summary({}) == "–" and known.world.summary(known.attributes[0])


def test_a_reply_is_judged_by_what_its_caption_names(known: Known) -> None:
    judged = known.world.judge(known.targets([*known.pictures[:-1], None]))
    assert judged.all_right == judged.scene_right == [True] * (len(known.pictures) - 1)
    assert judged.oracle == [True] * len(known.pictures)
    wrong = known.world.judge(known.targets([*known.pictures[1:], known.pictures[0]]))
    assert not any(wrong.all_right)


def test_pictures_of_another_size_are_refused(known: Known) -> None:
    with pytest.raises(ValueError, match="16, 16, 3"):
        known.world.seen_in([np.zeros((16, 16, 3), np.uint8)])


def test_there_are_requests_to_try(known: Known) -> None:
    examples = known.world.examples()
    assert examples.keys() == {"chat", "draw", "wish", "edit", "story"} and known.world.knows.startswith("It knows ")
    assert examples["draw"] and all(isinstance(request, str | tuple) for kind in examples.values() for request in kind)
