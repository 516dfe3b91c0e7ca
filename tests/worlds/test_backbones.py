from __future__ import annotations

import inspect
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.worlds.backbones import build, measure
from m2chat.worlds.manifest import MANIFEST
from m2chat.worlds.parts import Backbones, Facts, Part, Recipe, backbones_of

WORLDS = ("shapes", "emoji")


class Stub:
    """Recipes that only write a file and remember when they ran."""

    def __init__(self, world: str = "shapes") -> None:
        self.backbones = backbones_of(world)
        self.log: list[str] = []
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def parts(self, fail: str = "") -> Backbones:
        parts = {
            name: Part(part.paths, self._recipe(name, part, fail), part.needs, part.measure and self._measure(name))
            for name, part in self.backbones.parts.items()
        }
        return replace(self.backbones, parts=parts)

    def _recipe(self, name: str, part: Part, fail: str):  # noqa: ANN202
        def train(root: Path) -> Facts:
            with self._lock:
                self.log.append(name)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            for need in part.needs:
                assert all((root / path).exists() for path in self.backbones.parts[need].paths), (
                    f"{name} ran before {need}"
                )
            time.sleep(0.02)
            if name == fail:
                raise RuntimeError("the machine is on fire")
            for path in part.paths:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(f"{name} {len(self.log)}")
            with self._lock:
                self.at_once -= 1
            return {"seed": 0, "steps": 7, "good": 0.5}

        return train

    @staticmethod
    def _measure(name: str):  # noqa: ANN205
        return lambda root: {"good": 0.75}


@pytest.mark.parametrize("world", WORLDS)
def test_everything_in_order_as_many_at_a_time_as_is_said(world: str, tmp_path: Path) -> None:
    stub = Stub(world)
    done = build(tmp_path, stub.parts(), executor=ThreadPoolExecutor(4))
    assert sorted(stub.log) == sorted(stub.backbones.parts) == sorted(done)
    assert stub.most == stub.backbones.at_once == {"shapes": 2, "emoji": 1}[world]
    parts = json.loads((tmp_path / MANIFEST).read_text())["parts"]
    assert parts["vae"]["steps"] == 7 and parts["vae"]["quality"] == {"good": 0.5}


def test_one_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"'language' rests on 'clip'.*add clip to --only"):
        build(tmp_path, Stub().parts(), ["language"], ThreadPoolExecutor(1))
    build(tmp_path, Stub().parts(), executor=ThreadPoolExecutor(2))
    stub = Stub()
    capsys.readouterr()
    build(tmp_path, stub.parts(), ["clip"], ThreadPoolExecutor(1))
    assert stub.log == ["clip"]
    assert "--only language" in capsys.readouterr().out
    with pytest.raises(UserError, match="--only eye: choose of vae"):
        build(tmp_path, stub.parts(), ["eye"], ThreadPoolExecutor(1))


def test_a_failure_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on fire"):
        build(tmp_path, Stub().parts(fail="fid"), ["vae", "fid"], ThreadPoolExecutor(1))
    assert json.loads((tmp_path / MANIFEST).read_text())["parts"].keys() == {"vae"}


def test_measuring_keeps_seed_and_steps(tmp_path: Path) -> None:
    stub = Stub()
    build(tmp_path, stub.parts(), executor=ThreadPoolExecutor(2))
    trained = list(stub.log)
    assert measure(tmp_path, stub.parts(), ["unet"], ThreadPoolExecutor(1)) == {"unet": {"good": 0.75}}
    assert stub.log == trained
    parts = json.loads((tmp_path / MANIFEST).read_text())["parts"]
    assert parts["unet"]["quality"] == {"good": 0.75} and parts["unet"]["steps"] == 7
    assert parts["vae"]["quality"] == {"good": 0.5}
    with pytest.raises(UserError, match="only training can measure it"):
        measure(tmp_path, stub.parts(), ["text_encoders"], ThreadPoolExecutor(1))


def test_one_at_a_time_runs_in_this_process_and_its_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on fire"):
        build(tmp_path, Stub("emoji").parts(fail="clip"))
    assert json.loads((tmp_path / MANIFEST).read_text())["parts"].keys() == {"judge", "vae", "text_encoders"}


@pytest.mark.parametrize("world", WORLDS)
def test_every_recipe_is_a_function_and_can_be_sent_to_a_process(world: str) -> None:
    for name, part in backbones_of(world).parts.items():
        for recipe in filter(None, (part.train, part.measure)):
            assert isinstance(recipe, Recipe)
            module, _, function = recipe.function.rpartition(".")
            called = getattr(import_module(module), function)
            inspect.signature(called).bind("folder", **recipe.settings)
            assert pickle.loads(pickle.dumps(recipe)) == recipe, name
