"""Every script says what it does, and does nothing else, when it is asked for help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path
    for folder in ("benchmarks", "scripts")
    for path in sorted((ROOT / folder).iterdir())
    if path.suffix == ".sh" or (path.suffix == ".py" and "__main__" in path.read_text(encoding="utf-8"))
    if path.name != "slow_server.py"  # a part of `stream.py`
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_is_an_answer_at_once(script: Path, tmp_path: Path) -> None:
    """Without torch, which takes seconds to import: an importer that refuses it stands before all others."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'diffusers', 'lightning'): sys.modules[name] = None\n"
    )
    command = ["bash", str(script)] if script.suffix == ".sh" else [sys.executable, str(script)]
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout or f"{script.parent.name}/{script.name} " in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in ([], ["__pycache__"])


def test_a_part_that_does_not_exist() -> None:
    script = ROOT / "benchmarks" / "loader.py"
    done = subprocess.run([sys.executable, str(script), "webdatasets"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no part webdatasets; choose from webdataset," in done.stderr
