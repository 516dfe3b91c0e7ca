"""Every command of the README is run, cut short where it would take minutes."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m2chat import cli, commands
from m2chat.worlds.shapes.shards import write_world

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
SHORT = {
    "fit": (
        "--data.batch_size=2", "--data.samples_per_epoch=4", "--trainer.max_steps=2", "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=0",
    ),
    "test": ("--data.test_samples=4", "--model.init_args.evaluation.steps=2"),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8 and {command.split()[0] for command in COMMANDS} <= {
        "make", "lightning", "tensorboard", "m2chat"
    }  # fmt: skip


def is_slow(command: str) -> bool:
    """Whether it does what the command before it does, and takes half a minute."""
    return command.startswith("m2chat plan --config configs/paper/stage2.yaml")


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=[pytest.mark.slow] * is_slow(command)) for command in COMMANDS]
)
def test_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    if program == "m2chat" and arguments[0] == "plan":
        monkeypatch.chdir(ROOT)
        assert commands.main(arguments) == 0
        printed = capsys.readouterr().out
        # docs/scaling.md shows the last table of each plan as it is printed.
        rows = [line for line in printed.split("Each of", 1)[1].splitlines() if line.startswith("|")]
        assert len(rows) > 10 and [row for row in rows if row not in SCALING] == []
        return
    if program == "tensorboard":
        script = Path(sys.executable).with_name(program)
        subprocess.run([str(script), "--help"], check=True, capture_output=True, timeout=120)
        assert arguments[0] == "--logdir"
        return
    if program == "m2chat":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        assert commands.main([*arguments, "--steps", "2"]) == 0
        return
    write_world(ROOT / "data/micro/shards")
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    subcommand = arguments[0]
    if "--print_config" in arguments or any("/paper/" in part for part in arguments):
        # Eight GPUs are not everywhere: that the configuration is complete and parses is what can be seen here.
        whole = [*arguments, *(() if "--print_config" in arguments else ("--print_config",))]
        with pytest.raises(SystemExit) as ended:
            cli.main(whole)
        assert ended.value.code in (0, None)
        return
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    assert cli.main([*arguments, *SHORT[subcommand], *quiet]) == 0
    assert list(tmp_path.glob("lightning_logs/*_20*/events.out.tfevents.*"))


def test_files_that_it_names_exist() -> None:
    named = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert named and [link for link in named if not (ROOT / link).exists()] == []
