from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m2chat.commands import main


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from m2chat.commands import main; main([])\n"
        "try: main(['backbones', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("data", "report", "release-weights", "backbones", "chat", "draw", "lens", "measure"):
        assert command in done.stdout


def test_unknown_command_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["backbone"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'backbone'" in error and "backbones" in error and "release-weights" in error


def test_a_mistake_of_the_user_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no results.json below") and error.count("\n") == 1
