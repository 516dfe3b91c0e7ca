"""WebDataset shards: finding and writing them. A shard is a plain tar; `m2chat.data.index` locates its samples."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand
from webdataset.writer import TarWriter

from m2chat.data.index import UNKNOWN, Entry, Shard, open_shard, open_shards
from m2chat.data.remote import CACHE, PIPE, Url, fetch, find_remote, is_remote
from m2chat.data.sources import to_members
from m2chat.errors import UserError
from m2chat.files import by_number, whole_file
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
    "write_tar",
]

Group = tuple[str, Mapping[str, bytes]]
"""A sample as files: its key, without dots, and suffix to bytes."""


def find_shards(
    path: str | Path, setting: str = "path", *, allow_pipe: bool = False, cache: str | Path = CACHE
) -> list[Path | Url]:
    """The tars that a path setting names, sorted.

    Args:
        path: A tar, a folder of tars, or a pattern such as ``data/cc3m/*.tar`` with ``*``, ``?``, ``[]`` and
            ``{000..015}``; local, or with the protocol of a remote file system in front.
            ``pipe:COMMAND`` is the tar that a command prints.
        setting: Name of the setting, for the error.
        allow_pipe: Whether ``pipe:`` may run its command.
        cache: Folder for the output of a ``pipe:``.

    Raises:
        UserError: If there is none, or a ``pipe:`` is not allowed.
    """
    if str(path).startswith(PIPE):
        return [fetch(str(path), Path(cache).expanduser(), setting, allowed=allow_pipe)]
    place = Path(path)
    if place.is_file():
        if place.suffix != ".tar" and not tarfile.is_tarfile(place):
            raise UserError(
                f"{setting}={str(path)!r} is no tar: give a .tar shard, a folder of them or a pattern; `m2chat data "
                "convert` makes shards of other formats"
            )
        return [place]
    if is_remote(str(path)):
        return [url for part in braceexpand(str(path)) for url in find_remote(part, setting)]
    if place.is_dir():
        matches = place.glob("*.tar")
    else:
        matches = (Path(name) for part in braceexpand(str(path)) for name in glob.glob(part, recursive=True))
    shards = sorted((match for match in matches if match.is_file() and match.suffix == ".tar"), key=by_number)
    if not shards:
        fault = "is a folder without .tar files" if place.is_dir() else "names no file"
        raise UserError(
            f"{setting}={str(path)!r} {fault}: give a .tar, a folder of .tar shards or a pattern such as "
            f"'{path if place.is_dir() else place.parent}/*.tar'; `m2chat data` makes shards of other formats"
        )
    return [*shards]


def local_shards(path: str | Path, setting: str = "path") -> list[Path]:
    """As `find_shards`, where only local files will do.

    Raises:
        UserError: If there is none, or the path is remote.
    """
    if is_remote(str(path)):
        raise UserError(f"{setting}={str(path)!r} is not on this machine: copy the shards here first")
    return [place for place in find_shards(path, setting) if isinstance(place, Path)]


def write_tar(path: Path, groups: Iterable[Group]) -> int:
    """Writes samples to one shard with webdataset; the tar appears only when it is complete.

    Its bytes depend on the samples alone: no time, user or group of this machine gets into a header.

    Args:
        path: The tar; an older one of that name is replaced.
        groups: Samples.

    Returns:
        Number of samples.

    Raises:
        ValueError: If a key holds a dot.
    """
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    count = 0
    with (
        whole_file(path) as part,
        part.open("wb") as file,
        TarWriter(file, encoder=False, keep_meta=True, **fixed) as tar,
    ):
        for key, members in groups:
            if "." in key:
                raise ValueError(f"key {key!r}: a key ends at its first dot, so it must not hold one")
            tar.write({"__key__": key, **members})
            count += 1
    return count


def write_groups(groups: Iterable[Group], folder: Path, prefix: str, per_shard: int) -> list[Path]:
    """Writes samples as shards; the same samples always give the same bytes.

    Args:
        groups: Samples.
        folder: Target folder; made if missing.
        prefix: Beginning of the shards' names: ``<prefix>-000000.tar`` and so on.
        per_shard: Samples per shard.

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
    """Writes samples in the project's schema, ``m2c/1``, with their pictures as PNG.

    Args:
        samples: Samples, with unique ids.
        folder: Target folder; made if missing.
        prefix: Beginning of the shards' names: ``<prefix>-000000.tar`` and so on.
        per_shard: Samples per shard.

    Returns:
        The shards.
    """
    groups = ((f"{index:09d}", to_members(sample)) for index, sample in enumerate(samples))
    return write_groups(groups, folder, prefix, per_shard)
