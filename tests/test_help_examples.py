"""Every command that a help text, a document or a configuration recommends is one that the real parsers accept."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m2chat import cli, lightning_cli
from m2chat.commands import command_parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data/README.md", *sorted(ROOT.glob("docs/*.md"))]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
SOURCES = sorted(ROOT.glob("src/**/*.py"))
COMMAND = re.compile(r"^(?:[#$]\s*)?((?:lightning|m2chat) +[a-z].*)$")
KEY = re.compile(r"--((?:model|data|trainer)\.[\w.]*\w)")
RUNS = ("stage0", "stage1", "stage2", "eval_coco", "paper/stage1")
"""Configurations whose settings together are those that examples may name."""


def commands(text: str) -> Iterator[str]:
    """Commands of a text, a line each, without comments; a line that ends in a backslash goes on in the next."""
    for line in text.replace("\\\n", " ").splitlines():
        if match := COMMAND.match(line.strip()):
            # A remark stands behind a # or at least three spaces; placeholders of a usage line are no example.
            command = re.split(r"\s+#|\s{3,}", match[1])[0]
            if not re.search(r"\[--|\.\.\.|…", command):
                yield " ".join(command.split()) if "'" not in command else command


def examples() -> set[str]:
    """Commands of help texts, of code blocks of documents and of comments of configurations."""
    found = set(commands(cli.HELP))
    for path in DOCUMENTS:
        for block in re.findall(r"```(?:bash|sh|console|text)?\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            found |= set(commands(block))
    for path in CONFIGS:
        found |= set(commands("\n".join(re.findall(r"^# +(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))))
    return found


EXAMPLES = sorted(examples())


def test_examples_are_found() -> None:
    assert len(EXAMPLES) > 60
    # Where each kind stands: a help text, a document, a configuration.
    assert {"lightning fit --config configs/stage2.yaml", "m2chat weights inspect data/micro/llama"} <= set(EXAMPLES)
    assert "m2chat plan --config configs/paper/stage1.yaml" in EXAMPLES


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands name files that are not here."""
    command_parser()  # imports the commands
    for name in [name for name in sys.modules if name.startswith("m2chat.commands.")]:
        monkeypatch.setattr(f"{name}.existing", lambda kind="", remedy="": Path, raising=False)
        monkeypatch.setattr(f"{name}.backbone_file", Path, raising=False)
    monkeypatch.setattr(cli, "_fault", lambda arguments: "")


@pytest.mark.parametrize("command", [example for example in EXAMPLES if example.startswith("m2chat ")])
def test_m2chat_accepts(command: str, without_files: None) -> None:
    options, rest = command_parser().parse_known_args(shlex.split(command)[1:])
    assert callable(options.run)
    assert not rest or options.rest, "only `plan` hands arguments on"


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, without_files: None) -> Any:
    """A function that parses a `lightning` command as the program does, builds nothing, and returns the settings."""
    seen: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("m2chat.early_checks.check_run", lambda arguments: None)  # weights need not be there either
    for name in ("_set_seed", "_parse_ckpt_path"):
        monkeypatch.setattr(lightning_cli.M2ChatCLI, name, lambda self: None)
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "instantiate_classes", lambda self: seen.append(self.config))
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "_run_subcommand", lambda self, subcommand: None)

    def run(arguments: list[str]) -> Any:
        assert cli.main(arguments) == 0
        return seen.pop()[arguments[0]]

    return run


# Commands of configurations alone, one or several, are parsed in test_configs.py.
PLAIN = re.compile(r"lightning \w+( --config \S+)+")


@pytest.mark.parametrize("command", [e for e in EXAMPLES if e.startswith("lightning ") and not PLAIN.fullmatch(e)])
def test_lightning_accepts(parse: Any, command: str) -> None:
    assert parse([part for part in shlex.split(command)[1:] if part != "--print_config"])


@pytest.mark.parametrize("command", [example for example in EXAMPLES if PLAIN.fullmatch(example)])
def test_configurations_that_examples_name_exist(command: str) -> None:
    assert all((ROOT / path).is_file() for path in re.findall(r"--config (\S+)", command))


def test_every_setting_that_is_recommended_exists(parse: Any) -> None:
    wholes = [parse(["fit", "--config", f"configs/{name}.yaml"]) for name in RUNS]
    wholes.append(
        parse(
            [
                "fit",
                "--config",
                "configs/stage1.yaml",
                "--trainer.logger",
                "TensorBoardLogger",
                "--trainer.logger.save_dir",
                ".",
            ]
        )
    )
    texts = {path: path.read_text(encoding="utf-8") for path in (*DOCUMENTS, *CONFIGS, *SOURCES)}
    keys = {key: path for path, text in texts.items() for key in KEY.findall(text)}
    assert "model.init_args.m3adapter.gate.mode" in keys  # of the help
    # Of a logger, settings may be named without `init_args`.
    full = {key: key.replace("trainer.logger.", "trainer.logger.init_args.") for key in keys}
    assert not {key: path for key, path in keys.items() if not any(full[key] in whole for whole in wholes)}
