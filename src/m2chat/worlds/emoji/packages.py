"""Reads the pictures out of the packages of three open emoji sets, and what they show out of CLDR's names.

The packages are read as npm ships them, without unpacking. Only the files named here are opened: the sets of other
vendors that lie in the same packages' neighbourhood are never touched.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2chat.errors import UserError
from m2chat.worlds.emoji import provenance
from m2chat.worlds.emoji.provenance import CLDR, PACKAGES
from m2chat.worlds.emoji.scenes import SIZE, TONES, Pictures, Scene

_FOLDERS = {"noto": "google", "twemoji": "twitter"}
_LEFT_OUT = {"component", "flags"}
_ZWJ, _ADULT = "200D", "1F9D1"
_ADULTS = {"1F468": "man", "1F469": "woman"}
_SIGNS = {"2640": "woman", "2642": "man"}
_HAIRS = {"1F9B0": "red", "1F9B1": "curly", "1F9B3": "white", "1F9B2": "bald"}
# People that have a code point for each gender, by the neutral one's.
_SINGLE = {
    "1F468": (_ADULT, "man"),
    "1F469": (_ADULT, "woman"),
    "1F466": ("1F9D2", "boy"),
    "1F467": ("1F9D2", "girl"),
    "1F474": ("1F9D3", "man"),
    "1F475": ("1F9D3", "woman"),
    "1F930": ("1FAC4", "woman"),
    "1FAC3": ("1FAC4", "man"),
}
_TONE_OF_CODE = {f"1F3F{letter}": tone for letter, tone in zip("BCDEF", TONES[1:], strict=True)}


@dataclass(frozen=True)
class _Emoji:
    """One emoji of CLDR; `codes` are its code points without variation selectors."""

    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    codes: tuple[str, ...]


def _members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of a package by name, read in one pass: going back in a gzip stream reads it from its start again."""
    with tarfile.open(path) as package:
        files = ((member.name, package.extractfile(member)) for member in package if wanted(member.name))
        return {name: file.read() for name, file in files if file is not None}


def _json(members: dict[str, bytes], path: Path, name: str) -> Any:
    if name not in members:
        raise UserError(f"{path} has no file {name}: it is not the package that is expected")
    return json.loads(members[name])


def _codes(hexcode: str) -> tuple[str, ...]:
    return tuple(code for code in hexcode.upper().split("-") if code != "FE0F")


def clean_label(label: str) -> str:
    """A name as a sentence can hold it: ``A button (blood type)`` becomes ``A button, blood type``."""
    label = re.sub(r"\s*\((.*?)\)", r", \1", label.replace("“", "").replace("”", "").replace("’", "'"))
    return (
        label.replace("keycap: #", "keycap hash").replace("keycap: *", "keycap asterisk").replace("keycap: ", "keycap ")
    )


def read_entries(cache: Path) -> list[_Emoji]:
    """All emoji with a name, without flags and components; skin tones are entries too.

    Args:
        cache: Folder of the packages.
    """
    path, files = cache / CLDR, ("package/en/data.json", "package/meta/groups.json")
    members = _members(path, lambda name: name in files)
    rows, names = (_json(members, path, name) for name in files)
    entries = []
    for row in rows:
        group = names["groups"].get(str(row.get("group")))
        if group is None or group in _LEFT_OUT:
            continue
        subgroup = names["subgroups"][str(row["subgroup"])]
        shared = (clean_label(row["label"]), tuple(row.get("tags", ())), group, subgroup)
        entries.append(_Emoji(*shared, _codes(row["hexcode"])))
        # Two people of different tones are left out: one attribute says one tone.
        entries += [
            _Emoji(*shared, _codes(skin["hexcode"])) for skin in row.get("skins", ()) if isinstance(skin["tone"], int)
        ]
    return entries


def _neutral(codes: tuple[str, ...]) -> tuple[tuple[str, ...], str, str, str]:
    """Code points without attributes, then tone, hair and gender."""
    tones = [_TONE_OF_CODE[code] for code in codes if code in _TONE_OF_CODE]
    bare = tuple(code for code in codes if code not in _TONE_OF_CODE)
    hair = gender = ""
    if len(bare) == 1 and bare[0] in _SINGLE:
        code, gender = _SINGLE[bare[0]]
        bare = (code,)
    elif len(bare) == 3 and bare[0] in (_ADULT, *_ADULTS) and bare[2] in _HAIRS:
        gender, hair = _ADULTS.get(bare[0], ""), _HAIRS[bare[2]]
        bare = (_ADULT,)
    elif len(bare) >= 3 and bare[1] == _ZWJ and bare[2] in _SIGNS:
        gender = _SIGNS[bare[2]]
        bare = (bare[0], *bare[3:])
    elif (
        len(bare) >= 3
        and bare[0] in _ADULTS
        and bare[1] == _ZWJ
        and bare[2] not in (*_ADULTS, "1F466", "1F467", "2764", "1F91D")
    ):
        gender = _ADULTS[bare[0]]
        bare = (_ADULT, *bare[1:])
    if bare == ("1F471",):  # a person with blond hair
        bare, hair = (_ADULT,), "blond"
    return bare, tones[0] if tones else "", hair, gender


def scenes_of(entries: list[_Emoji]) -> list[Scene]:
    """What each emoji shows, without a style."""
    names = {entry.codes: entry.label for entry in entries}
    scenes = []
    for entry in entries:
        bare, tone, hair, gender = _neutral(entry.codes)
        concept = names.get(bare)
        if concept is None:  # nothing without attributes: then it is a concept as it is
            concept, hair, gender = entry.label, "", ""
        scenes.append(
            Scene(
                concept=concept,
                style="",
                tone=tone,
                hair=hair,
                gender=gender,
                label=entry.label,
                keywords=entry.keywords,
                group=entry.group,
                subgroup=entry.subgroup,
                hexcode="-".join(entry.codes),
            )
        )
    return scenes


def _on_white(data: bytes) -> NDArray[np.uint8]:
    """A PNG with alpha as RGB on white: (64, 64, 3)."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


_Reader = Callable[[str], tuple[str, NDArray[np.uint8]] | None]
"""From code points to the name of a member and its picture; None where the set has no such emoji."""


def _png_reader(path: Path, style: str) -> _Reader:
    prefix = f"package/img/{_FOLDERS[style]}/64/"
    members = _members(path, lambda name: name.startswith(prefix) and name.endswith(".png"))
    names = {"-".join(_codes(name.removeprefix(prefix).removesuffix(".png"))): name for name in members}

    def read(hexcode: str) -> tuple[str, NDArray[np.uint8]] | None:
        name = names.get(hexcode)
        return None if name is None else (name, _on_white(members[name]))

    return read


def _svg_reader(path: Path) -> _Reader:
    try:
        import resvg_py
    except ImportError as error:
        raise UserError('drawing SVG needs resvg-py: pip install "m2chat[pocket]"') from error

    files = ("package/icons.json", "package/chars.json")
    members = _members(path, lambda name: name in files)
    icons, by_code = (_json(members, path, name) for name in files)
    names = {"-".join(_codes(code)): name for code, name in by_code.items()}
    width, height = icons.get("width", 32), icons.get("height", 32)

    def read(hexcode: str) -> tuple[str, NDArray[np.uint8]] | None:
        name = names.get(hexcode)
        if name is None:
            return None
        alias = icons["aliases"].get(name, {}) if name not in icons["icons"] else {}
        icon = icons["icons"][alias.get("parent", name)]
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', width)} {icon.get('height', height)}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
        pixels = _on_white(bytes(png))
        return f"package/icons.json#{name}", pixels[:, ::-1] if alias.get("hFlip") else pixels

    return read


def _of_style(style: str, scenes: list[Scene], path: Path) -> Iterator[tuple[Scene, NDArray[np.uint8]]]:
    """The pictures of a set; what looks exactly like an earlier one is left out, since no judge could tell them."""
    read = _svg_reader(path) if style == "fluent" else _png_reader(path, style)
    seen: set[bytes] = set()
    # Plain ones first: of a neutral and a gendered emoji that are drawn alike, the neutral one stays.
    for scene in sorted(scenes, key=lambda scene: not scene.is_plain):
        picture = read(scene.hexcode)
        if picture is None:
            continue
        name, pixels = picture
        if pixels.tobytes() in seen:
            continue
        seen.add(pixels.tobytes())
        yield replace(scene, style=style, file=f"{PACKAGES[style]}:{name}"), pixels


def build_pictures(cache: Path) -> Pictures:
    """Reads all pictures from their packages.

    Args:
        cache: Folder in which the packages lie.

    Raises:
        UserError: If a package is missing, or is another than expected.
    """
    provenance.require_packages(cache, provenance.DIGESTS)
    scenes = scenes_of(read_entries(cache))
    pairs: list[tuple[Scene, NDArray[np.uint8]]] = []
    for style, name in PACKAGES.items():
        pairs += _of_style(style, scenes, cache / name)
    return Pictures(tuple(scene for scene, _ in pairs), np.stack([pixels for _, pixels in pairs]))
