"""``index.json``: which shards a folder should hold, so that a lost or damaged one is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.files import write_whole

NAME = "index.json"


@dataclass(frozen=True)
class Listed:
    """A shard as the manifest describes it.

    Args:
        name: Of the file.
        samples: How many it holds.
        bytes: Its length.
        sha256: Of its content.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


def sha256_of(path: Path) -> str:
    """Of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, shards: Iterable[Listed], kinds: Mapping[str, int], **more: Any) -> None:
    """Writes the manifest of a folder.

    Args:
        folder: Where the shards lie.
        shards: Each of them.
        kinds: Samples by kind.
        more: Whatever else should be known of the data set.
    """
    record = {"shards": [vars(shard) for shard in shards], "kinds": dict(sorted(kinds.items())), **more}
    write_whole(folder / NAME, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


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
