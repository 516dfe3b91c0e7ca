"""No two runs share a folder, whatever starts them and however they are named."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from m2chat import lightning_cli
from m2chat.errors import UserError
from m2chat.files import locked
from toys import TOY_CONFIG, ToyData, ToyStage

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
    assert len(folders) == RUNS
    assert all(re.fullmatch(r"toy_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?", folder.name) for folder in folders)
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
def test_all_processes_of_a_run_know_its_folder(lightning: Callable[..., int], workplace: Path, logger: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def task(rank: int) -> int:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK="0")
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
        arguments = (
            "--model=NotingStage",
            "--trainer.strategy=ddp",
            "--trainer.devices=2",
            f"--trainer.logger={logger}",
        )
        return lightning("fit", *arguments, "--trainer.max_steps=1")

    assert at_once(task, 2) == [0, 0]
    (folder,) = map(str, (workplace / "lightning_logs").iterdir())
    for rank in range(2):
        for path in (workplace / f"rank_{rank}.txt").read_text().splitlines():
            assert str(Path(path).absolute()) == folder


@pytest.mark.filterwarnings("ignore")
def test_a_folder_with_a_name(lightning: Callable[..., int], refusal: Callable[..., str], workplace: Path) -> None:
    folder = workplace / "lightning_logs/mine"
    folder.mkdir(parents=True)
    (folder / "output.txt").write_text("of the shell")  # a redirection may be there before the run
    assert lightning("fit", *NAMED) == 0
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    before = (folder / "config.yaml").read_text()

    message = refusal("fit", *NAMED)
    assert "lightning_logs/mine holds another run" in message
    assert (
        "name another --trainer.logger.version" in message
        and f"--ckpt_path {checkpoint.relative_to(workplace)}" in message
    )
    assert "holds another run" in refusal("test", *NAMED, f"--ckpt_path={checkpoint}")
    elsewhere = workplace / "other.ckpt"
    elsewhere.write_bytes(checkpoint.read_bytes())
    assert "holds another run" in refusal("fit", *NAMED, f"--ckpt_path={elsewhere}", "--trainer.max_steps=5")
    assert (folder / "config.yaml").read_text() == before and len(list(folder.glob(EVENTS))) == 1

    with locked(folder):
        assert "another process writes to lightning_logs/mine" in refusal(
            "fit", *NAMED, f"--ckpt_path={checkpoint}", "--trainer.max_steps=5"
        )
    assert lightning("fit", *NAMED, f"--ckpt_path={checkpoint}", "--trainer.max_steps=5") == 0
    assert (folder / "config.0.yaml").read_text() == before
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 5
    assert not list(workplace.glob("lightning_logs/.*"))


@pytest.mark.filterwarnings("ignore")
def test_two_loggers_share_a_folder_and_going_on_keeps_the_table(
    lightning: Callable[..., int], workplace: Path
) -> None:
    both = (
        "[{class_path: TensorBoardLogger, init_args: {save_dir: .}}, {class_path: CSVLogger, init_args: {save_dir: .}}]"
    )
    assert lightning("fit", f"--trainer.logger={both}") == 0
    (folder,) = (workplace / "lightning_logs").iterdir()
    assert list(folder.glob(EVENTS)) and (folder / "metrics.csv").is_file()
    before = (folder / "metrics.csv").read_text()
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    again = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", f"--trainer.logger.version={folder.name}")
    assert lightning("fit", *again, f"--ckpt_path={checkpoint}", "--trainer.max_steps=5") == 0
    assert (folder / "metrics.0.csv").read_text() == before and (folder / "metrics.csv").read_text() != before


@pytest.mark.filterwarnings("ignore")
def test_the_last_checkpoint_of_the_same_name(lightning: Callable[..., int], refusal: Callable[..., str]) -> None:
    saving = "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {save_last: true}}]"
    arguments = (*NAMED, saving, "--ckpt_path=last")
    for stage in ("fit", "test"):  # never from scratch, and never with weights that happen to be there
        assert "--ckpt_path last: the folder of this run holds no such checkpoint" in refusal(stage, *arguments)
    assert not Path("lightning_logs/mine").exists()
    assert lightning("fit", *NAMED, saving) == 0
    assert "the newest is lightning_logs/mine/checkpoints/" in refusal("fit", "--ckpt_path=last")
    assert "--ckpt_path best" in refusal("fit", "--ckpt_path=best")
    assert lightning("fit", *arguments, "--trainer.max_steps=5") == 0
    assert Path("lightning_logs/mine/config.0.yaml").is_file()
    Path("lightning_logs/mine/checkpoints/last.ckpt").unlink()
    assert "holds another run" in refusal("fit", *arguments, "--trainer.max_steps=7")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [(), NAMED])
def test_a_mistake_leaves_no_folder(
    lightning: Callable[..., int], refusal: Callable[..., str], workplace: Path, name: tuple[str, ...]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("there are no such data")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyData, "train_dataloader", refuse)
        assert "no such data" in refusal("fit", *name)
    assert not list((workplace / "lightning_logs").iterdir())
    assert lightning("fit", *name) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_is_one_line_and_leaves_no_empty_file(
    lightning: Callable[..., int], refusal: Callable[..., str], workplace: Path
) -> None:
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        message = refusal("fit", "--trainer.logger=false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "/lightning_logs/toy_" in message and "/config.yaml: File too large" in message and "are free" in message
    assert not list(workplace.glob("lightning_logs/**/*.yaml")) and not list(workplace.glob("**/.*.part"))
    assert lightning("fit", "--trainer.logger=false") == 0


def test_tests_have_folders_and_a_trial_run_has_none(lightning: Callable[..., int], workplace: Path) -> None:
    assert lightning("fit", "--trainer.fast_dev_run=true") == 0
    assert not (workplace / "lightning_logs").exists()
    assert lightning("test") == lightning("test", "--trainer.logger=false", "--trainer.default_root_dir=out") == 0
    for root in (workplace, workplace / "out"):
        assert len(list(root.glob("lightning_logs/toy_*/config.yaml"))) == 1


@pytest.mark.filterwarnings("ignore")
def test_the_runs_of_a_cluster_job(
    lightning: Callable[..., int], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"JOB_ID": "77", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert lightning("fit") == lightning("test") == 0
    assert sorted(path.name for path in (workplace / "lightning_logs").iterdir()) == ["version_77", "version_77_1"]
