"""Every picture can be traced to an open set by its contents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.worlds.emoji import provenance
from m2chat.worlds.emoji.pictures import read_pictures
from m2chat.worlds.emoji.provenance import CLDR, DIGESTS, PACKAGES, READ, not_read, write_read
from m2chat.worlds.emoji.scenes import STYLES, Pictures

ROOT = Path(__file__).parents[3]


def test_what_was_not_read_is_named_whatever_it_says_of_itself(world: Pictures, tmp_path: Path) -> None:
    write_read(tmp_path / "read.txt", world, DIGESTS)
    assert not_read(world, tmp_path / "read.txt") == []
    pixels = world.pixels.copy()
    pixels[3, 0, 0, 0] ^= 1  # another picture under the name of an open one
    assert not_read(Pictures(world.scenes, pixels), tmp_path / "read.txt") == [world.scenes[3].file]
    claims = [replace(world.scenes[0], file="emoji-datasource-apple-16.0.0.tgz:1"), *world.scenes[1:]]
    assert not_read(Pictures(tuple(claims), world.pixels), tmp_path / "read.txt") == [claims[0].file]


@pytest.mark.parametrize("package", ["emoji-datasource-apple-16.0.0.tgz", CLDR])
def test_a_list_of_other_packages_is_refused(world: Pictures, tmp_path: Path, package: str) -> None:
    path = tmp_path / "read.txt"
    write_read(path, world, DIGESTS)
    path.write_text(path.read_text() + f"{package} {'0' * 64}\n")
    with pytest.raises(UserError, match=package):
        not_read(world, path)


def test_packages_are_those_of_three_open_sets() -> None:
    assert PACKAGES.keys() == STYLES.keys() and DIGESTS.keys() == {CLDR, *PACKAGES.values()}
    closed = ("apple", "facebook", "joypixels", "samsung", "windows")
    assert not [name for name in DIGESTS if any(word in name for word in closed)]
    heads = [line.split() for line in (ROOT / READ).read_text().splitlines()[1:] if " " in line]
    assert dict(heads) == {name: digest for name, digest in DIGESTS.items() if name != CLDR}  # type: ignore[arg-type]


def test_every_shipped_picture_was_read_from_one_of_them() -> None:
    folder = ROOT / "data/pocket/pictures"
    if not folder.is_dir():
        pytest.skip("data/pocket/pictures is not there yet: `python -m m2chat.worlds.emoji shards` writes it")
    pictures = read_pictures(folder)
    assert len(pictures) > 9000 and provenance.not_read(pictures, ROOT / READ) == []
