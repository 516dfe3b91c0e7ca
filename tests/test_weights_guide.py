"""The guide to weights: its commands run, in its order, as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from m2chat.commands import main

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")


def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = "".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)).splitlines()
    assert len(commands) >= 7
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "lightning":  # test_help_examples.py parses those
            continue
        assert program == "m2chat" and main(arguments) == 0, capsys.readouterr().err


def test_what_it_names_exists() -> None:
    from m2chat.models.weights import exported

    assert all(hasattr(exported, name) for name in re.findall(r"`(\w+)\(", GUIDE))
    assert all((ROOT / name).exists() for name in re.findall(r"`((?:configs|tests)/[\w/.]+)`", GUIDE))
