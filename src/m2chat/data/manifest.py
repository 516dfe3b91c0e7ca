"""``index.json``: which shards a folder should hold, so that a lost or damaged one is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2chat.checksums import sha256
from m2chat.errors import UserError
from m2chat.files import write_whole

NAME = "index.json"


@dataclass(frozen=True)
class Listed:
    """A shard as the manifest describes it.

    Args:
        name: Name of the file.
        samples: Number of samples.
        bytes: Length of the file.
        sha256: SHA-256 of the file, in hexadecimal digits.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, samples: int) -> Listed:
        """Describes a finished shard; reads the whole file."""
        return cls(path.name, samples, path.stat().st_size, sha256(path))


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes a folder's ``index.json``.

    Args:
        folder: Folder of the shards.
        index: Content; its ``shards`` is a list of `Listed` as dictionaries.
    """
    write_whole(folder / NAME, [json.dumps(index, indent=1, ensure_ascii=False), "\n"])


def write_manifest(folder: Path, shards: Iterable[Listed], kinds: Mapping[str, int], **more: Any) -> None:
    """Writes the ``index.json`` of shards that no conversion made.

    Args:
        folder: Folder of the shards.
        shards: All shards.
        kinds: Number of samples by kind.
        more: Further facts about the data set.
    """
    write_index(folder, {"shards": [asdict(shard) for shard in shards], "kinds": dict(sorted(kinds.items())), **more})


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``index.json``, with a list of ``shards``.

    Raises:
        UserError: If it is missing or something else.
    """
    path = folder / NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}): delete the folder to start anew") from error
    if not isinstance(index, dict) or not isinstance(index.get("shards"), list):
        raise UserError(f"{path} is no index of shards: choose another folder")
    return index


def read_manifest(folder: Path) -> dict[str, Listed] | None:
    """The shards that a folder should hold, by name; None if it has no manifest.

    Raises:
        UserError: If the manifest is something else.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["shards"]
        shards = [Listed(str(row["name"]), int(row["samples"]), int(row["bytes"]), str(row["sha256"])) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no list of shards with name, samples, bytes and sha256 ({type(error).__name__}): make it anew "
            "with the command that wrote the shards, or remove it"
        ) from error
    return {shard.name: shard for shard in shards}
