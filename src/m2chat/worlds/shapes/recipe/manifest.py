"""``data/micro/manifest.json``: every shipped file with its size and SHA-256, every part with how it came about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m2chat.checksums import manifest_digest, sha256
from m2chat.errors import UserError
from m2chat.worlds.shapes.recipe.parts import PARTS, Facts

MANIFEST = "manifest.json"
LIMIT = 24 * 2**20
"""Most bytes that may be shipped: a clone must stay quick."""
_OWNERS = {name: part.paths for name, part in PARTS.items()} | {"m2chat": ("m2chat",)}
_NOT_SHIPPED = (MANIFEST, "README.md", "shards", "shards.part")


def _files(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and name.parts[0] not in _NOT_SHIPPED and name.name != "README.md":
            yield name.as_posix()


def _owner(name: str) -> str | None:
    """The part that a file belongs to."""
    for owner, paths in _OWNERS.items():
        if any(name == path or name.startswith(f"{path}/") for path in paths):
            return owner
    return None


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        UserError: If there is none.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise UserError(f"there is no {path}: `m2chat backbones --manifest --out {root}` writes it")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def write_manifest(root: Path, qualities: Mapping[str, Facts]) -> Path:
    """Writes the manifest of what lies in a folder.

    Args:
        root: Folder of the backbones, such as ``data/micro``.
        qualities: Seed, steps and quality of the parts that were made just now, as their recipes returned them, or
            quality alone where they were measured. What is known of another part stays only while its files do.

    Returns:
        The manifest.

    Raises:
        UserError: If a file belongs to no part, or all together are too large; the old manifest stays then.
    """
    present_files: dict[str, dict[str, Any]] = {}
    for name in _files(root):
        owner = _owner(name)
        if owner is None:
            raise UserError(f"{root / name} belongs to no part of the backbones ({', '.join(_OWNERS)}): remove it")
        present_files.setdefault(owner, {})[name] = _entry(root / name)
    total = sum(entry["bytes"] for files in present_files.values() for entry in files.values())
    if total > LIMIT:
        raise UserError(f"the files in {root} have {total:,} bytes, more than the {LIMIT:,} that may be shipped")
    old = read_manifest(root)["parts"] if (root / MANIFEST).is_file() else {}
    parts = {}
    for name in (owner for owner in _OWNERS if owner in present_files):
        facts = dict(qualities.get(name, {}))
        known = old.get(name, {})
        unchanged = known.get("files") == present_files[name]
        parts[name] = {
            "seed": facts.pop("seed", known.get("seed") if unchanged else None),
            "steps": facts.pop("steps", known.get("steps") if unchanged else None),
            "quality": facts or (known.get("quality", {}) if unchanged else {}),
            "bytes": sum(entry["bytes"] for entry in present_files[name].values()),
            "files": present_files[name],
        }
    path = root / MANIFEST
    manifest = {"total_bytes": total, "limit_bytes": LIMIT, "parts": parts}
    path.write_text(json.dumps({**manifest, "sha256": manifest_digest(manifest)}, indent=2) + "\n")
    return path


def verify_manifest(root: Path) -> list[str]:
    """What differs between a folder and its manifest, in words; empty if nothing does.

    Raises:
        UserError: If there is no manifest.
    """
    manifest = read_manifest(root)
    listed = {name: entry for part in manifest["parts"].values() for name, entry in part["files"].items()}
    present = set(_files(root))
    faults = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    faults += [f"{name} is not listed" for name in sorted(present - listed.keys())]
    faults += [f"{name} has changed" for name in sorted(present & listed.keys()) if _entry(root / name) != listed[name]]
    return faults
