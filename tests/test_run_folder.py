"""No two runs share a folder, whatever starts them and however they are named."""

from __future__ import annotations

import os
import re
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from toys import TOY_CONFIG, ToyData, ToyStage

from m2chat import lightning_cli
from m2chat.files import locked

RUNS = 8
EVENTS = "events.out.tfevents.*"
NAMED = ("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=.", "--trainer.logger.version=mine")


class NotingStage(ToyStage):
    """Writes down what its process takes for the run's folder."""

    def on_train_start(self) -> None:
        folders = [self.trainer.log_dir or "", *(logger.log_dir or "" for logger in self.trainer.loggers)]
        Path(f"rank_{self.trainer.global_rank}.txt").write_text("\n".join(folders), encoding="utf-8")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a configuration of the toy modules."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(yaml.safe_dump(TOY_CONFIG), encoding="utf-8")
    return tmp_path


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command on the toys, in this process."""

    def run(subcommand: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lightning", subcommand, "--config=toy.yaml", *arguments])
        return lightning_cli.run(ToyData)

    return run


@pytest.fixture
def refusal(lightning: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The line that says why a command is refused."""

    def run(*arguments: str) -> str:
        assert lightning(*arguments) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return line

    return run


def at_once(task: Callable[[int], int], count: int) -> list[int]:
    """Exit codes of forked processes that do a task with their number, let go at the same moment."""
    gate_out, gate_in = os.pipe()
    children = []
    for number in range(count):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.close(gate_in)
                os.read(gate_out, 1)  # until the parent closes its end
                code = task(number)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(gate_in)
    os.close(gate_out)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("logger", ["true", "CSVLogger", "false"])
def test_runs_started_at_once_get_a_folder_each(lightning: Callable[..., int], workplace: Path, logger: str) -> None:
    more = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.") if logger == "CSVLogger" else ()
    more = more or (f"--trainer.logger={logger}",)

    def task(number: int) -> int:
        return lightning("fit", f"--model.init_args.phi={number + 1}", "--trainer.max_steps=1", *more)

    assert at_once(task, RUNS) == [0] * RUNS
    folders = sorted((workplace / "lightning_logs").iterdir())
    assert [folder.name for folder in folders] == [f"version_{number}" for number in range(RUNS)]
    seen = set()
    for folder in folders:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        (checkpoint,) = folder.glob("checkpoints/*.ckpt")
        hyperparameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
        assert config["model"]["init_args"]["phi"] == hyperparameters["phi"]
        seen.add(hyperparameters["phi"])
        assert len(list(folder.glob(EVENTS))) == (logger == "true")
        assert len(list(folder.glob("metrics.csv"))) == (logger == "CSVLogger")
    assert seen == set(range(1, RUNS + 1))


@pytest.mark.filterwarnings("ignore")
def test_of_runs_with_one_name_one_goes_on(lightning: Callable[..., int], workplace: Path) -> None:
    codes = at_once(lambda number: lightning("fit", "--trainer.max_steps=1", *NAMED), 4)
    assert sorted(codes) == [0, 2, 2, 2]
    assert len(list((workplace / "lightning_logs/mine").glob(EVENTS))) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("logger", ["true", "false"])
def test_all_processes_of_a_run_know_its_folder(
    lightning: Callable[..., int], workplace: Path, logger: str
) -> None:
    (workplace / "lightning_logs/version_4").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def task(rank: int) -> int:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK="0")
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
        arguments = ("--model=NotingStage", "--trainer.strategy=ddp", "--trainer.devices=2", f"--trainer.logger={logger}")
        return lightning("fit", *arguments, "--trainer.max_steps=1")

    assert at_once(task, 2) == [0, 0]
    folder = str(workplace / "lightning_logs/version_5")
    for rank in range(2):
        for path in (workplace / f"rank_{rank}.txt").read_text().splitlines():
            assert str(Path(path).absolute()) == folder
    assert [path.name for path in (workplace / "lightning_logs").iterdir()] == ["version_4", "version_5"]
