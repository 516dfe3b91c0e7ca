"""Pictures, names and attributes out of packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.worlds.emoji.packages import build_pictures, clean_label, read_entries, scenes_of
from m2chat.worlds.emoji.provenance import CLDR, PACKAGES
from m2chat.worlds.emoji.scenes import Scene, load_pictures, save_pictures

pytest.importorskip("resvg_py")


def named(packages: Path) -> dict[str, Scene]:
    return {scene.label + scene.tone: scene for scene in scenes_of(read_entries(packages))}


def test_attributes_are_read_from_code_points_and_concepts_are_free_of_them(packages: Path) -> None:
    scenes = named(packages)
    woman, dark = scenes["woman firefighter"], scenes["firefighterdark"]
    assert woman.combination == ("firefighter", "", "", "woman")
    assert dark.combination == ("firefighter", "dark", "", "")
    assert scenes["man walking"].combination == ("person walking", "", "", "man")
    assert scenes["woman: curly hair"].combination == ("person", "", "curly", "woman")
    assert scenes["woman: blond hair"].combination == ("person", "", "blond", "woman")
    assert scenes["family: man, boy"].combination == ("family: man, boy", "", "", "")


def test_flags_components_and_pairs_of_tones_are_left_out(packages: Path) -> None:
    assert not {"flag: Chad", "light skin tone", "regional indicator A"} & named(packages).keys()
    assert sum(scene.label == "couple" for scene in scenes_of(read_entries(packages))) == 1


def test_pictures_stand_on_white_in_every_style(packages: Path) -> None:
    pictures = build_pictures(packages)
    apples = {s.style: p for s, p in zip(pictures.scenes, pictures.pixels, strict=True) if s.concept == "red apple"}
    assert apples.keys() == PACKAGES.keys()
    for pixels in apples.values():
        assert pixels.shape == (64, 64, 3)
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[32, 32].tolist() == [255, 0, 0]


def test_of_two_that_are_drawn_alike_the_neutral_one_stays(packages: Path) -> None:
    labels = {scene.label for scene in build_pictures(packages).scenes if scene.style == "noto"}
    assert "person walking" in labels
    assert "man walking" not in labels


def test_a_mirrored_alias_is_mirrored(packages: Path) -> None:
    pictures = build_pictures(packages)
    of = {scene.concept: i for i, scene in enumerate(pictures.scenes) if scene.style == "fluent"}
    left, right = pictures.pixels[of["person"]], pictures.pixels[of["person walking"]]
    assert np.array_equal(left[:, ::-1], right)
    assert not np.array_equal(left, right)


def test_every_picture_says_which_file_of_which_open_set_it_was_read_from(packages: Path) -> None:
    for scene in build_pictures(packages).scenes:
        assert scene.file.startswith(f"{PACKAGES[scene.style]}:package/")
    assert not [name for name in PACKAGES.values() if any(word in name for word in ("apple", "facebook", "joypixels"))]


@pytest.mark.parametrize("name", [CLDR, *PACKAGES.values()])
def test_a_missing_package_is_named_with_its_remedy(packages: Path, name: str) -> None:
    (packages / name).unlink()
    with pytest.raises(UserError, match=f"(?s){name}.*npm pack"):
        build_pictures(packages)


def test_a_package_with_other_contents_is_refused(packages: Path) -> None:
    path = packages / PACKAGES["noto"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"google.*SHA-256 is another"):
        build_pictures(packages)


def test_saved_pictures_come_back(packages: Path) -> None:
    pictures = build_pictures(packages)
    save_pictures(packages / "pictures.npz", pictures)
    again = load_pictures(packages / "pictures.npz")
    assert again.scenes == pictures.scenes
    assert np.array_equal(again.pixels, pictures.pixels)
    with pytest.raises(UserError, match="pictures"):
        load_pictures(packages / "nothing.npz")


def test_labels_become_words() -> None:
    assert clean_label("A button (blood type)") == "A button, blood type"
    assert clean_label("Japanese “here” button") == "Japanese here button"
    assert clean_label("keycap: 3") == "keycap 3"
