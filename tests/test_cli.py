from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from m2chat import cli, lightning_cli
from m2chat.callbacks.interrupt import InterruptGuard
from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.callbacks.throughput import Throughput
from m2chat.integrity import verify
from m2chat.training.atomic_io import AtomicCheckpointIO
from toys import TOY_CONFIG, ToyData, ToyStage


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a configuration of the toy modules."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(yaml.safe_dump(TOY_CONFIG), encoding="utf-8")
    return tmp_path


def lightning(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command on the toys, in this process."""
    monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
    return lightning_cli.run(ToyData)


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys, json; from m2chat.cli import main; codes = [main([]), main(['--help']), main(['--version'])];"
        "print(json.dumps([codes, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    if "PackageNotFoundError" in done.stderr:
        pytest.skip("m2chat is not installed, only on the path")
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0, 0], False]
    assert done.stdout.count("lightning test --config configs/eval_mmdialog.yaml") == 2


def test_tables_of_results_need_no_torch() -> None:
    root = Path(__file__).parent.parent
    code = (
        "import sys; from m2chat.commands import main;"
        "print(main(['report', '--root', 'nowhere']), main(['eval', 'table']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=root)
    assert done.stdout.splitlines()[-1] == "2 0 False", done.stderr


def environment() -> dict[str, str]:
    source = Path(cli.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(source)}


def test_the_console_scripts_are_ours() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"lightning": "m2chat.cli:main", "m2chat": "m2chat.commands:main"}


def test_fit_then_resume_then_test(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml") == 0
    (path,) = workplace.glob("lightning_logs/toy_*/checkpoints/*.ckpt")
    assert verify(path)
    payload = torch.load(path, weights_only=True)
    assert set(payload["state_dict"]) == {"trained.weight", "trained.bias"}
    saved = yaml.safe_load((path.parents[1] / "config.yaml").read_text(encoding="utf-8"))
    assert saved["seed_everything"] == 0
    more = ("--trainer.max_steps", "5", "--ckpt_path", str(path))
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml", *more) == 0
    others = {other.name for other in workplace.glob("lightning_logs/toy_*/checkpoints/*.ckpt") if other != path}
    assert others == {"epoch=1-step=5.ckpt"}
    assert lightning(monkeypatch, "test", "--config", "toy.yaml", "--ckpt_path", str(path)) == 0


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> lightning_cli.M2ChatCLI:
    """The command line with everything built and nothing run."""
    seen: list[lightning_cli.M2ChatCLI] = []
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "_run_subcommand", lambda self, subcommand: seen.append(self))
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml", *arguments) == 0
    return seen[0]


def test_links_overlays_guards_and_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("over.yaml").write_text("model: {init_args: {phi: 3.0, backbone: {num_image_tokens: 9}}}", encoding="utf-8")
    command = parsed(monkeypatch, "--config", "over.yaml", "--nonfinite.patience", "4")
    assert command.datamodule.linked == ("llama", "clip", "tiny", 9)
    assert command.model.phi == 3.0
    callbacks = {type(callback): callback for callback in command.trainer.callbacks}
    assert callbacks.keys() >= {Throughput, NonFiniteGuard, InterruptGuard}
    assert callbacks[NonFiniteGuard].patience == 4
    assert isinstance(command.trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize(("given", "seed"), [(None, 0), ("3", 3), ("0", 0), ("true", 0), ("false", 0)])
def test_one_seed_for_all(monkeypatch: pytest.MonkeyPatch, given: str | None, seed: int) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    command = parsed(monkeypatch, *([] if given is None else ["--seed_everything", given]))
    assert (command.model.seed, command.datamodule.seed) == (seed, seed)


def test_fsdp_by_its_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "trainer: {strategy: {class_path: M2ChatFSDPStrategy, init_args: {data_parallel_size: 1}}}"
    Path("over.yaml").write_text(text, encoding="utf-8")
    command = parsed(monkeypatch, "--config", "over.yaml")
    assert type(command.trainer.strategy).__name__ == "M2ChatFSDPStrategy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.max_stepz=3"], ["trainer.max_stepz", "Did you mean 'trainer.max_steps'?"]),
        (["--model.init_args.phii=3"], ["phii", "Did you mean 'phi'?"]),
        (["--data.batchsize=3"], ["data.batchsize", "Did you mean 'data.batch_size'?"]),
        (["--model=ToyStag"], ["'ToyStag' is no class", "Did you mean 'ToyStage'?"]),
        (["--trainer.callbacks=ModelCheckpint"], ["'ModelCheckpint' is no class", "Did you mean 'ModelCheckpoint'?"]),
        (["--trainer.max_steps=many"], ["trainer.max_steps='many': expected a whole number"]),
        (["--model.init_args.phi=many"], ["model.phi='many': expected a number"]),
        (["--trainer.benchmark=maybe"], ["trainer.benchmark='maybe': expected true or false or null"]),
        (["--model.init_args.nothing=3"], ["Option 'nothing' is not accepted; `lightning fit --help` lists"]),
        (["--data.num_image_tokens", "4"], ["has the value of model.init_args.backbone.num_image_tokens: set that"]),
        (["--data.num_image_tokens=4"], ["has the value of model.init_args.backbone.num_image_tokens: set that"]),
        (["--config=nothing.yaml"], ["nothing.yaml", "not exist"]),
        (["--ckpt_path=nothing.ckpt"], ["there is no checkpoint file nothing.ckpt"]),
        (["--ckpt_path=."], ["is a folder", "`m2chat consolidate`"]),
        (["--model.init_args.backbone.language_model=missing"], ["there is no folder missing"]),
        (["--data.shards=empty"], ["data.shards: the folder empty holds no shards"]),
    ],
)
def test_a_mistake_gives_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and len(errors[0]) < 200
    assert all(word in errors[0] for word in words), errors[0]


def test_misspelt_keys_in_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for text, words in {
        "model: {init_args: {backbone: {languagemodel: x}}}": "Did you mean 'backbone.language_model'?",
        "trainer: {max_stepz: 3}": "Did you mean 'trainer.max_steps'?",
        "modle: {init_args: {phi: 3}}": "Did you mean 'model'?",
    }.items():
        Path("over.yaml").write_text(text, encoding="utf-8")
        assert lightning(monkeypatch, "fit", "--config", "toy.yaml", "--config", "over.yaml") == 2
        assert words in capsys.readouterr().err


def test_a_checkpoint_of_another_stage_is_refused_and_never_changes_the_class(
    monkeypatch: pytest.MonkeyPatch, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml", "--model.init_args.phi=2") == 0
    (path,) = workplace.glob("lightning_logs/toy_*/checkpoints/*.ckpt")
    arguments = ("fit", "--config", "toy.yaml", "--model=ToySecondStage", "--ckpt_path", str(path))
    assert lightning(monkeypatch, *arguments) == 2
    assert "stage 'first', but stage 'second' is wanted" in capsys.readouterr().err
    command = parsed(monkeypatch, "--ckpt_path", str(path))
    assert type(command.model) is ToyStage and command.model.phi == 1.0


def test_diverged_training_exits_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model.init_args.phi=.nan", "--nonfinite.patience=1")
    assert lightning(monkeypatch, "fit", "--config", "toy.yaml", *arguments) == 1
    assert "not finite for 2 steps in a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "here/a.bin"), 2, "cannot write here/a.bin: No space left"),
    ],
)
def test_what_ends_a_run_outside_its_guards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lightning_cli, "M2ChatCLI", fail)
    assert lightning(monkeypatch, "fit") == code
    assert line in capsys.readouterr().err
