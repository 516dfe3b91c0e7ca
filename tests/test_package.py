"""What a wheel holds besides Python: the shipped weights, and the files that the code reads."""

from __future__ import annotations

import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def tracked(folder: str) -> list[str]:
    """Files of a folder that git knows."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no clone")
    return done.stdout.split()


def test_the_shipped_weights_are_in_it() -> None:
    patterns = [pattern for patterns in SETUPTOOLS["data-files"].values() for pattern in patterns]
    assert all(target == f"share/m2chat/{Path(where).parent}" for target, (where,) in SETUPTOOLS["data-files"].items())
    # A wheel has what a model answers with; the pictures to learn from are in the repository alone.
    shipped = [*tracked("data/micro"), *(file for file in tracked("data/pocket") if "/pictures/" not in file)]
    links = [path for path in map(Path, shipped) if (ROOT / path).is_dir()]  # whose files are another folder's
    files = [file for file in shipped if Path(file) not in links]
    files += [str(link / file.name) for link in links for file in (ROOT / link).iterdir()]
    assert len(files) > 40
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_files_beside_the_code_are_in_it() -> None:
    listed = SETUPTOOLS["package-data"]
    for file in tracked("src/m2chat"):
        path = Path(file).relative_to("src")
        if path.suffix != ".py":
            package = ".".join(path.parts[:-1])
            assert any(fnmatch(path.name, pattern) for pattern in listed.get(package, ())), file
