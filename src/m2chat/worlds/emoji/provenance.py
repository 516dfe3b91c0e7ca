"""What was read from which package: a list of hashes that holds every shipped picture to an open set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2chat.checksums import sha256
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.worlds.emoji.scenes import Pictures

CLDR = "emojibase-data-17.0.0.tgz"
PACKAGES: dict[str, str] = {
    "noto": "emoji-datasource-google-16.0.0.tgz",
    "twemoji": "emoji-datasource-twitter-16.0.0.tgz",
    "fluent": "iconify-json-fluent-emoji-flat-1.2.6.tgz",
}
"""The package of each style."""
DIGESTS: dict[str, str] = {
    CLDR: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    PACKAGES["noto"]: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    PACKAGES["twemoji"]: "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    PACKAGES["fluent"]: "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
}
"""SHA-256 of each package as npm ships it."""
READ = Path("data/pocket/read.txt")
"""The list of what was read."""
_DIGITS = 16


def require_packages(cache: Path, digests: Mapping[str, str]) -> None:
    """Checks that a folder holds the packages that are expected, and no others of these names.

    Raises:
        UserError: If one is missing or has other contents.
    """
    if missing := [name for name in digests if not (cache / name).is_file()]:
        raise UserError(
            f"{cache} lacks {', '.join(missing)}: run there `npm pack emoji-datasource-google@16.0.0 "
            "emoji-datasource-twitter@16.0.0 @iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0`"
        )
    for name, digest in digests.items():
        if sha256(cache / name) != digest:
            raise UserError(f"{cache / name} is not the package that is expected: its SHA-256 is another; get it again")


def write_read(path: Path, pictures: Pictures, digests: Mapping[str, str]) -> None:
    """Writes the list: under each package's name and SHA-256 the hashes of the pictures that were read from it.

    Args:
        path: The file.
        pictures: As they were read from the packages.
        digests: SHA-256 by package.
    """
    by_package: dict[str, set[str]] = {}
    for scene, pixels in zip(pictures.scenes, pictures.pixels, strict=True):
        by_package.setdefault(scene.file.partition(":")[0], set()).add(_hash(pixels))
    lines = [f"# SHA-256 of the RGB pixels of every picture, its first {_DIGITS} digits, under the package's own."]
    for package, hashes in sorted(by_package.items()):
        lines += [f"{package} {digests[package]}", *sorted(hashes)]
    with whole_file(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def not_read(pictures: Pictures, path: Path) -> list[str]:
    """Files of the pictures that were not read from the open packages, by their contents; none if all were.

    Args:
        pictures: Pictures to trace, such as the shipped ones.
        path: The list that `write_read` wrote.

    Raises:
        UserError: If the list names a package that is no open set, or another edition of one.
    """
    known, current = dict[str, set[str]](), set[str]()
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, _, digest = line.partition(" ")
        if digest:
            if DIGESTS.get(name) != digest or name == CLDR:
                raise UserError(f"{path} lists {name}, which is none of the open sets {', '.join(PACKAGES.values())}")
            current = known.setdefault(name, set())
        else:
            current.add(name)
    return [
        scene.file
        for scene, pixels in zip(pictures.scenes, pictures.pixels, strict=True)
        if scene.file.partition(":")[0] != PACKAGES[scene.style]
        or _hash(pixels) not in known.get(PACKAGES[scene.style], set())
    ]


def _hash(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:_DIGITS]
