"""Small stand-ins for the packages and pictures of the emoji world, drawn here: no picture of others is needed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from m2chat.checksums import sha256
from m2chat.worlds.emoji import provenance
from m2chat.worlds.emoji.provenance import CLDR, PACKAGES
from m2chat.worlds.emoji.scenes import SIZE, STYLES, TONES, Pictures, Scene

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
FORMS = ("circle", "square")


def tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as package:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))


def png(colour: str, form: str = "circle") -> bytes:
    """A form on a transparent ground."""
    picture = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if form == "circle" else pen.rectangle)((16, 16, 48, 48), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def row(label: str, hexcode: str, group: int, subgroup: int, **more: object) -> dict[str, object]:
    return {"label": label, "hexcode": hexcode, "group": group, "subgroup": subgroup, "tags": ["one", "two"], **more}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four packages of a few emoji, as npm ships them."""
    skins = [row("firefighter: dark skin tone", "1F9D1-1F3FF-200D-1F692", 1, 2, tone=5)]
    mixed = [row("holding hands: light, dark", "1F46B-1F3FB", 1, 2, tone=[1, 5])]
    data = [
        row("red apple", "1F34E", 4, 3),
        row("red heart", "2764", 0, 0),
        row("firefighter", "1F9D1-200D-1F692", 1, 2, skins=skins),
        row("woman firefighter", "1F469-200D-1F692", 1, 2),
        row("person walking", "1F6B6", 1, 2),
        row("man walking", "1F6B6-200D-2642-FE0F", 1, 2),
        row("person", "1F9D1", 1, 2),
        row("woman: curly hair", "1F469-200D-1F9B1", 1, 2),
        row("woman: blond hair", "1F471-200D-2640-FE0F", 1, 2),
        row("family: man, boy", "1F468-200D-1F466", 1, 2),
        row("couple", "1F46B", 1, 2, skins=mixed),
        row("light skin tone", "1F3FB", 2, 1),
        row("flag: Chad", "1F1F9-1F1E9", 9, 4),
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    groups = {
        "groups": {"0": "smileys-emotion", "1": "people-body", "2": "component", "4": "food-drink", "9": "flags"},
        "subgroups": {"0": "heart", "1": "skin-tone", "2": "person-role", "3": "food-fruit", "4": "country-flag"},
    }
    files = {"en/data.json": json.dumps(data).encode(), "meta/groups.json": json.dumps(groups).encode()}
    tarball(tmp_path / CLDR, files)
    codes = {
        "1f34e": "red",
        "2764-fe0f": "crimson",
        "1f9d1-200d-1f692": "orange",
        "1f9d1-1f3ff-200d-1f692": "brown",
        "1f469-200d-1f692": "gold",
        "1f6b6": "navy",
        "1f6b6-200d-2642-fe0f": "navy",  # drawn as the neutral one
        "1f9d1": "yellow",
        "1f469-200d-1f9b1": "tan",
        "1f471-200d-2640-fe0f": "khaki",
        "1f468-200d-1f466": "grey",
        "1f46b": "pink",
        "1f46b-1f3fb": "wheat",
        "1f1f9-1f1e9": "green",
    }
    for style, folder, form in (("noto", "google", "circle"), ("twemoji", "twitter", "square")):
        pictures = {f"img/{folder}/64/{code}.png": png(colour, form) for code, colour in codes.items()}
        tarball(tmp_path / PACKAGES[style], {"emoji.json": b"[]", **pictures})
    icons = {
        "icons": {
            "red-apple": {"body": '<path fill="#f00" d="M4 4h24v24H4z"/>'},
            "left": {"body": '<path d="M0 0h9v32H0z"/>'},
        },
        "aliases": {"right": {"parent": "left", "hFlip": True}},
        "width": 32,
        "height": 32,
    }
    chars = {"1f34e": "red-apple", "1f9d1": "left", "1f6b6": "right"}
    files = {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(chars).encode()}
    tarball(tmp_path / PACKAGES["fluent"], files)
    names = (CLDR, *PACKAGES.values())
    monkeypatch.setattr(provenance, "DIGESTS", {name: sha256(tmp_path / name) for name in names})
    return tmp_path


@pytest.fixture(scope="session")
def world() -> Pictures:
    """Twelve things and a person in every tone, in three styles that differ in size."""
    scenes, pixels = [], []
    for number, style in enumerate(STYLES):
        things = [(f"{colour} {form}", form, colour, "") for form in FORMS for colour in COLOURS]
        things += [("person", "circle", f"hsl(30, 60%, {20 + 12 * i}%)", tone) for i, tone in enumerate(TONES)]
        for name, form, colour, tone in things:
            picture = Image.new("RGB", (SIZE, SIZE), "white")
            pen, margin = ImageDraw.Draw(picture), 4 + 8 * number
            (pen.ellipse if form == "circle" else pen.rectangle)((margin, margin, SIZE - margin, SIZE - margin), colour)
            group, keywords = ("people-body" if name == "person" else "symbols"), ("form", "colour", "sign")
            code = f"{len(scenes):X}"
            file = f"{PACKAGES[style]}:{code}"
            scenes.append(Scene(name, style, tone, "", "", name, keywords, group, "geometric", code, file))
            pixels.append(np.asarray(picture))
    return Pictures(tuple(scenes), np.stack(pixels))


@pytest.fixture(scope="session")
def few(world: Pictures) -> Pictures:
    """Six pictures of the world, two concepts in three styles."""
    return world.take([i for i, scene in enumerate(world.scenes) if scene.concept in ("red circle", "blue square")])


@pytest.fixture(scope="session")
def trained_judge(few: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a judge that knows these six pictures."""
    from m2chat.worlds.emoji.recipe.course import Plan
    from m2chat.worlds.emoji.recipe.judge import train_judge

    out = tmp_path_factory.mktemp("judge")
    assert train_judge(few, out, Plan(steps=40, lr=2e-3, warmup=10, decay=20, ema=0.9), batch=12, device="cpu")
    return out / "weights" / "judge"
