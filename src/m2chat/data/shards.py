"""WebDataset shards: finding them, and writing our own. A shard is a plain tar; `index` tells where its samples lie."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from m2chat.data.entries import Entry
from m2chat.data.index import UNKNOWN, Shard, open_shard, open_shards
from m2chat.data.remote import CACHE, PIPE, Url, fetch, find_remote, is_remote
from m2chat.data.sources import to_members
from m2chat.data.tars import write_tar
from m2chat.errors import UserError
from m2chat.schema import Sample

__all__ = [
    "UNKNOWN",
    "Entry",
    "Shard",
    "find_shards",
    "local_shards",
    "open_shard",
    "open_shards",
    "write_groups",
    "write_shards",
]


def find_shards(
    path: str | Path, setting: str = "path", *, allow_pipe: bool = False, cache: str | Path = CACHE
) -> list[Path | Url]:
    """The tars that a setting names, sorted.

    Args:
        path: A tar, a folder of tars, or a pattern such as ``data/cc3m/*.tar`` with ``*``, ``?``, ``[]`` and
            ``{000..015}``; of this machine, or with the protocol of a remote file system in front.
            ``pipe:COMMAND`` is the tar that a command prints.
        setting: Name of the setting, for the error.
        allow_pipe: Whether ``pipe:`` may run its command.
        cache: Where the output of a ``pipe:`` is kept.

    Raises:
        UserError: If there is none, or a ``pipe:`` is not allowed.
    """
    if str(path).startswith(PIPE):
        return [fetch(str(path), Path(cache).expanduser(), setting, allowed=allow_pipe)]
    place = Path(path)
    if place.is_file():
        return [place]
    if is_remote(str(path)):
        return [url for part in braceexpand(str(path)) for url in find_remote(part, setting)]
    if place.is_dir():
        found = place.glob("*.tar")
    else:
        found = (Path(name) for part in braceexpand(str(path)) for name in glob.glob(part, recursive=True))
    shards = sorted(item for item in found if item.is_file() and item.suffix == ".tar")
    if not shards:
        fault = "is a folder without .tar files" if place.is_dir() else "names no file"
        raise UserError(
            f"{setting}={str(path)!r} {fault}: give a .tar, a folder of .tar shards or a pattern such as "
            f"'{path if place.is_dir() else place.parent}/*.tar'; `m2chat data` makes shards of other formats"
        )
    return [*shards]


def local_shards(path: str | Path, setting: str = "path") -> list[Path]:
    """As `find_shards`, for what is done to files of this machine only.

    Raises:
        UserError: If there is none, or they lie elsewhere.
    """
    if is_remote(str(path)):
        raise UserError(f"{setting}={str(path)!r} is not on this machine: copy the shards here first")
    return [place for place in find_shards(path, setting) if isinstance(place, Path)]


def write_groups(
    groups: Iterable[tuple[str, Mapping[str, bytes]]], folder: Path, prefix: str, per_shard: int
) -> list[Path]:
    """Writes samples as files; the same samples always give the same bytes.

    Args:
        groups: Key (without dots) and files (suffix to bytes) of each sample.
        folder: Made if missing.
        prefix: The shards are called ``<prefix>-000000.tar`` and so on.
        per_shard: Samples of a shard.

    Returns:
        The shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    rest = iter(groups)
    while chunk := list(islice(rest, per_shard)):
        path = folder / f"{prefix}-{len(paths):06d}.tar"
        write_tar(path, chunk)
        paths.append(path)
    return paths


def write_shards(samples: Iterable[Sample], folder: Path, prefix: str = "shard", per_shard: int = 1000) -> list[Path]:
    """Writes samples in our own schema, ``m2c/1``, their pictures as PNG.

    Args:
        samples: What to write; `Sample.id` should be unique.
        folder: Made if missing.
        prefix: The shards are called ``<prefix>-000000.tar`` and so on.
        per_shard: Samples of a shard.

    Returns:
        The shards.
    """
    groups = ((f"{index:09d}", to_members(sample)) for index, sample in enumerate(samples))
    return write_groups(groups, folder, prefix, per_shard)
