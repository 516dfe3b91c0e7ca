"""A feature cache: outputs of the frozen networks for every sample of a run, in place of the networks.

`m2chat data features` writes it, ``data.features`` trains from it. Its manifest has the fingerprints of everything that
the outputs depend on; a run with other networks, another layout or other data is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import INDEX, Form, Index
from m2chat.errors import UserError
from m2chat.files import locked, write_whole

MANIFEST = "features.json"
ROOT = Path("data/features")
"""Folder of the caches among which ``data.features: auto`` chooses."""
VERSION = 2
STAGES = ("align", "m3ft")
READING = "align"
"""Stage whose language model is frozen, so that its states are kept."""


@dataclass(frozen=True)
class FeatureOrigin:
    """What the features of a run depend on.

    Args:
        stage: Stage that trains from them.
        networks: Fingerprint of each network.
        settings: Settings of the data and of the model.
        parts: For each part ``<split>/<source>``, the fingerprint of its data.
    """

    stage: str
    networks: Mapping[str, str]
    settings: Mapping[str, Any]
    parts: Mapping[str, str]

    def misfits(self, run: FeatureOrigin) -> list[str]:
        """What of a run these features do not fit, in words: a run may have more networks and fewer data."""
        misfits = [] if self.stage == run.stage else [f"the stage ({self.stage!r}, now {run.stage!r})"]
        misfits += [f"the {name}" for name, value in self.networks.items() if run.networks.get(name) != value]
        misfits += [
            f"{name} ({value}, now {run.settings.get(name)})"
            for name, value in self.settings.items()
            if run.settings.get(name) != value
        ]
        return misfits + [
            f"the data of {name}" + ("" if name in self.parts else " (not in the cache)")
            for name, value in run.parts.items()
            if self.parts.get(name) != value
        ]


@dataclass(frozen=True)
class FeatureManifest:
    """What a cache is.

    Args:
        origin: What its features depend on.
        form: Form of the records.
        clip_width: W, width of the vision encoder's tokens.
        chunk: Records per chunk.
        batch: Samples that were computed at once: with another number the last bits differ.
        version: Version of the layout.
    """

    origin: FeatureOrigin
    form: Form
    clip_width: int
    chunk: int
    batch: int
    version: int = VERSION

    def text(self) -> str:
        """The manifest as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> FeatureManifest:
        """The manifest of a cache.

        Raises:
            UserError: If there is none, or it is damaged or of another version.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise UserError(
                    f"{folder} is a feature cache of version {content['version']}, and this program reads {VERSION}: "
                    "build it again with `m2chat data features`"
                )
            origin, form = FeatureOrigin(**content.pop("origin")), content.pop("form")
            return cls(origin, Form(**{**form, "latents": tuple(form["latents"])}), **content)
        except FileNotFoundError:
            raise UserError(
                f"data.features={str(folder)!r} is no feature cache: make one with "
                f"`m2chat data features --config CONFIG {folder}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged ({error}): remove {folder}, and build it again") from error


class FeatureCache:
    """A cache on disk.

    Args:
        folder: Its folder.

    Raises:
        UserError: If there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, FeatureManifest.read(folder)

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model must know of the networks that it does without: arguments of `m2chat.models.absent.Kept`."""
        form = self.manifest.form
        return {
            "width": form.width,
            "clip_width": self.manifest.clip_width,
            "text": form.text,
            "reading": form.whole,
        }

    def part(self, name: str) -> FeaturePart:
        """The records of ``<split>/<source>``.

        Raises:
            UserError: If some have not been written yet.
        """
        part = FeaturePart(self.folder / folder_of(name), self.manifest.form, self.manifest.chunk)
        if missing := part.missing():
            raise UserError(
                f"data.features={str(self.folder)!r} is not finished: {len(missing)} of {len(part.chunks)} files of "
                f"{name} are missing, the first is {part.path(missing[0])}; run the same `m2chat data features` "
                "again, which goes on"
            )
        return part


def fitting_cache(folder: Path, run: FeatureOrigin) -> FeatureCache:
    """The cache in a folder, if a run can train from it.

    Raises:
        UserError: If it is not finished, or is of something else; names what differs.
    """
    cache = FeatureCache(folder)
    if misfits := cache.manifest.origin.misfits(run):
        raise UserError(
            f"data.features={str(folder)!r} was made for other inputs than this run's: {', '.join(misfits)}. Make "
            "another with `m2chat data features` and this run's configuration, undo the change, or train without "
            "data.features"
        )
    for name in run.parts:
        cache.part(name)
    return cache


def is_other(folder: Path, manifest: FeatureManifest) -> bool:
    """Whether a folder holds a cache, perhaps a damaged one, that is not the one of a manifest."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return FeatureManifest.read(folder).text() != manifest.text()
    except UserError:
        return True


def create(folder: Path, manifest: FeatureManifest, indices: Mapping[str, Index]) -> None:
    """Makes a cache without records, or makes sure that the one that is there is the same.

    Several processes may call it at once.

    Args:
        folder: Folder of the cache.
        manifest: Its manifest.
        indices: Index of each part.

    Raises:
        UserError: If the folder has something else in it, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / MANIFEST):
            if (folder / MANIFEST).is_file():
                there = FeatureManifest.read(folder)
                if there.text() == manifest.text():
                    return
                other = "other sources or options (--dtype, --text, --batch, --chunk)"
                reasons = there.origin.misfits(manifest.origin) or [other]
                raise UserError(
                    f"{folder} is a feature cache of something else: {', '.join(reasons)}; name a new folder, or "
                    "have it made anew with --replace"
                )
            if not _is_begun(folder, indices):
                raise UserError(f"{folder} is no feature cache and has something in it: name a new folder")
            for name, index in indices.items():
                (folder / folder_of(name)).mkdir(parents=True, exist_ok=True)
                index.write(folder / folder_of(name) / INDEX)
            write_whole(folder / MANIFEST, [manifest.text()])
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; make room or name another place") from error


def _is_begun(folder: Path, parts: Collection[str]) -> bool:
    """Whether a folder holds nothing but what a killed `create` for these parts left: indices, and no manifest yet."""
    visible = [path for path in folder.iterdir() if path.name[0] != "."]
    if {path.name for path in visible} - {folder_of(part) for part in parts}:
        return False
    return all(inner.name.startswith((".", INDEX)) for path in visible for inner in path.iterdir())


def folder_of(part: str) -> str:
    """Name of the folder of a part; two sources never get the same."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in part)
    return plain if plain == part.replace("/", "-") else f"{plain}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def caches() -> list[Path]:
    """The caches among which ``data.features: auto`` chooses."""
    return sorted(path.parent for path in ROOT.glob(f"*/{MANIFEST}"))


def chosen_cache(setting: str, run: FeatureOrigin) -> FeatureCache | None:
    """The cache that a run trains from.

    Args:
        setting: Folder of the cache, or ``auto`` for one under `ROOT` that fits.
        run: What the features of the run depend on.

    Returns:
        None if ``auto`` has none; the reasons are printed.

    Raises:
        UserError: If the folder has no cache, it is not finished, or is of something else.
    """
    if setting != "auto":
        return fitting_cache(Path(setting), run)
    reasons = []
    for folder in caches():
        try:
            cache = fitting_cache(folder, run)
        except UserError as error:
            reasons.append(str(error))
        else:
            rank_zero_info(f"data.features=auto: training from {folder}")
            return cache
    rank_zero_info("\n".join(["data.features=auto: no feature cache fits, so none is used", *reasons]))
    return None
