"""Tars that depend on nothing but their content: the same files always give the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from m2chat.files import whole_file


def write_tar(path: Path, groups: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes samples side by side; the tar appears only when it is complete.

    Args:
        path: The tar; one of that name is replaced.
        groups: Key (without dots) and files (suffix to bytes) of each sample.

    Returns:
        Number of samples.

    Raises:
        ValueError: If a key holds a dot.
    """
    count = 0
    with whole_file(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in groups:
            if "." in key:
                raise ValueError(f"key {key!r}: a key ends at its first dot, so it must not hold one")
            for suffix in sorted(members):
                # A new TarInfo has no time, user or group: nothing of this machine gets into the shard.
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(members[suffix])
                tar.addfile(entry, io.BytesIO(members[suffix]))
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            count += 1
    return count
