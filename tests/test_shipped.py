"""The models that come with the project: which one answers, and what is missing."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from m2chat import shipped
from m2chat.commands.arguments import model_or_path
from m2chat.commands.serve import has_browser
from m2chat.early_checks import require_files
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.pipeline.weights import _anchored
from m2chat.shipped import MADE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an installation without weights."""
    monkeypatch.setattr(shipped, "ROOTS", (Path(), tmp_path / "package"))
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    return tmp_path / "package" / "data"


def ship(data: Path, name: str) -> None:
    file = data / name / shipped.WEIGHTS
    file.parent.mkdir(parents=True)
    file.touch()


def test_the_first_complete_model_answers(here: Path) -> None:
    assert shipped.default_model() == ("micro", "")
    ship(here, "micro")
    assert shipped.default_model() == ("micro", "")
    ship(here, "pocket")
    name, lacks = shipped.default_model()
    assert name == "micro" and "the pocket model needs a language model" in lacks and "`make smollm2`" in lacks
    with pytest.raises(UserError, match="pocket model needs a language model that is not here: `make smollm2` in a"):
        shipped.require_complete("pocket")
    (here / "smollm2").mkdir()
    assert shipped.default_model() == ("pocket", "")
    assert shipped.anchored("data/smollm2") == str(here / "smollm2")
    assert shipped.anchored("data/pocket/sdxl") == str(here / "pocket/sdxl")
    assert shipped.anchored("data/weights/llama-7b") == "data/weights/llama-7b"


def test_weights_that_are_not_here_are_named(here: Path) -> None:
    with pytest.raises(UserError, match=r"the shipped pocket weights are not here: there is no data/pocket/m2chat/"):
        shipped.folder_of("pocket")
    with pytest.raises(UserError, match="the shipped micro weights are not here"):
        shipped.anchored("data/micro/sdxl")


def test_a_language_model_that_is_not_here_names_what_brings_it(here: Path) -> None:
    brings = "`make smollm2` in a clone of the project, or `m2chat weights fetch smollm2 data/smollm2`, brings it"
    with pytest.raises(UserError, match=f"data/smollm2 is not here: {brings}"):
        _anchored(BackboneConfig("data/smollm2", "a.pth", "clip", "sdxl", 8))
    with pytest.raises(UserError, match=brings):
        require_files({"language_model": "data/smollm2"})


def test_an_adapter_that_a_command_makes_names_the_command(here: Path) -> None:
    for path, command in MADE.items():
        with pytest.raises(UserError, match=f"no such file or folder here; `{command}` makes it"):
            require_files({"adapter": path})


def test_a_name_goes_before_a_path(here: Path) -> None:
    Path("micro").mkdir()
    assert model_or_path("micro") == "micro" and model_or_path("./micro") == Path("micro")
    with pytest.raises(ArgumentTypeError, match=r"'pockt': there is no such file.*micro\. Did you mean 'pocket"):
        model_or_path("pockt")


def test_a_page_is_opened_only_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_browser()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_browser()
