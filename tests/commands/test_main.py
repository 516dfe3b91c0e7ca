from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m2chat.commands import main
from m2chat.data.shards import write_tar


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from m2chat.commands import main; main([])\n"
        "try: main(['backbones', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("data", "report", "release-weights", "backbones", "chat", "serve", "draw", "lens", "measure"):
        assert command in done.stdout


def test_unknown_command_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbone"]) == 2
    error = capsys.readouterr().err
    assert "'backbone'" in error and "backbones" in error and "release-weights" in error


def test_a_mistake_of_the_user_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no results.json below") and error.count("\n") == 1


def test_who_has_seen_enough_may_go(tmp_path: Path) -> None:
    """`m2chat data ... | head` ends as other commands do: by the pipe's code, without a word."""
    write_tar(tmp_path / "a.tar", [("a", {"txt": b"no picture"})])
    code = f"import sys; from m2chat.commands import main; sys.exit(main(['data', 'validate', {str(tmp_path)!r}]))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
