"""The folder of a run: it is taken by making it, so that no two runs share one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from m2chat.errors import UserError
from m2chat.files import cannot_write, locked, take_folder, whole_file

FileLogger: TypeAlias = TensorBoardLogger | CSVLogger
"""Loggers that write into a folder ``<save_dir>/<name>/<version>``, which is then the run's."""

_START = ("config*.yaml", "hparams.yaml", "events.out.tfevents.*")
"""What a run writes before its first step."""
_RUN = (*_START, "metrics*.csv", "checkpoints", "results.json", "predictions*.jsonl", "images")
"""What shows that a folder is that of a run. Anything else, such as the file of a shell's redirection, may be there."""


@contextmanager
def run_folder(trainer: Trainer, name: str, continues: Sequence[Path] = ()) -> Iterator[None]:
    """Takes the folder of a run and holds it until the block ends.

    The process of rank 0 takes it; the others learn of it from `SaveConfig`. Without a version of the user's it is
    called ``<name>_<date>_<time>``, as TensorBoard then lists it; a version that the user gave must be free. A run
    without a logger gets a folder as the default logger would have it, so that its checkpoints have a place of their
    own. Remote folders and loggers that write to a service are theirs.

    A run that a mistake of the user's ends before its first step leaves no folder.

    Args:
        trainer: The trainer, before it runs anything.
        name: What is run, such as ``stage1``.
        continues: Checkpoints or evaluations that the run goes on with: the folder that holds one may be used again.
            ``last`` stands for the last checkpoint of the run's own folder.

    Raises:
        UserError: If a folder that the user named holds another run, or another process writes to it.
    """
    if vars(trainer)["fast_dev_run"] or not trainer.is_global_zero:
        yield
        return
    with ExitStack() as held:
        made: list[Path] = []
        try:
            for folder in _take(trainer, name, continues, held):
                made.append(folder)
            yield
        except UserError:
            if not trainer.global_step:
                for folder in made:
                    _remove_start(folder)
            raise


def _take(trainer: Trainer, name: str, continues: Sequence[Path], held: ExitStack) -> Iterator[Path]:
    """Takes the folder of each logger; loggers that would write side by side share one.

    Yields:
        Folders that were not there before.
    """
    if not trainer.loggers and "://" not in trainer.default_root_dir:
        root = Path(trainer.default_root_dir) / "lightning_logs"
        folder = take_folder(root, _dated(name))
        held.enter_context(locked(folder, wait=False))
        _set_root(trainer, str(folder))
        yield folder
    taken: dict[Path, str] = {}
    named: set[Path] = set()
    for logger in _file_loggers(trainer):
        root = Path(os.path.expanduser(os.path.expandvars(logger.root_dir)))
        job = SLURMEnvironment.job_id() if SLURMEnvironment.detect() else None
        if logger._version is not None and logger._version != job:
            folder = root / _name(logger._version)
            if folder not in named:
                named.add(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder, wait=False))
                if _take_named(folder, continues):
                    yield folder
            if isinstance(logger, CSVLogger):  # which deletes the file of the former part
                set_aside(folder / "metrics.csv")
        elif root in taken:
            logger._version = taken[root]
        else:
            folder = take_folder(root, _dated(name) if job is None else _of_job(job))
            held.enter_context(locked(folder, wait=False))
            logger._version = taken[root] = folder.name
            yield folder


def _set_root(trainer: Trainer, folder: str) -> None:
    """Sets where a trainer without a logger writes."""
    vars(trainer)["_default_root_dir"] = folder


def _file_loggers(trainer: Trainer) -> list[FileLogger]:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
    return [logger for logger in loggers if "://" not in str(logger.root_dir)]


def _name(version: int | str) -> str:
    """Name of a version's folder, as Lightning has it."""
    return version if isinstance(version, str) else f"version_{version}"


def _dated(name: str) -> Iterator[str]:
    """``<name>_<date>_<time>``, then further ones for runs that start in the same second."""
    dated = f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    yield dated
    yield from (f"{dated}_{number}" for number in count(1))


def _of_job(job: int) -> Iterator[str]:
    """``version_<job>``, as Lightning numbers runs under SLURM, then further ones for further runs of the job."""
    yield f"version_{job}"
    yield from (f"version_{job}_{number}" for number in count(1))


def _take_named(folder: Path, continues: Sequence[Path]) -> bool:
    """Takes a folder that the user named.

    Returns:
        Whether it was made.

    Raises:
        UserError: If it holds another run.
    """
    try:
        folder.mkdir()
        return True
    except FileExistsError:
        if not folder.is_dir():
            raise UserError(f"the run folder {folder} is a file: name another version") from None
    last = folder.glob("checkpoints/last*.ckpt") if Path("last") in continues else ()
    if any(path.resolve().is_relative_to(folder.resolve()) for path in (*continues, *last)):
        return False
    if there := next(_there(folder, _RUN), None):
        checkpoints = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        go_on = f", go on with it by --ckpt_path {checkpoints[-1]}" if checkpoints else ""
        raise UserError(
            f"the folder {folder} holds another run ({there.name}), which would be overwritten: name another "
            f"--trainer.logger.version, leave it out to get a new one{go_on}, or remove the folder"
        )
    return False


def _there(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern))


def _remove_start(folder: Path) -> None:
    """Removes the folder of a run that has not begun; one with anything else in it stays as it is."""
    files = list(_there(folder, _START))
    if set(files) == set(folder.iterdir()):
        for file in files:
            file.unlink()
        folder.rmdir()


def set_aside(path: Path) -> None:
    """Renames a file, if it is there, to the first of ``<stem>.0<suffix>``, ``<stem>.1<suffix>``, … that is free."""
    if path.exists():
        others = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count())
        path.rename(next(other for other in others if not other.exists()))


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the folder of the run, which all processes then know.

    Where a run goes on in the folder of a former one, that one's settings stay there as ``config.0.yaml``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the other processes of the folder, and writes."""
        if self.already_saved:
            return
        loggers = _file_loggers(trainer)
        here: list[Any] = [
            trainer.default_root_dir,
            *(logger.version if trainer.is_global_zero else None for logger in loggers),
        ]
        folder, *versions = trainer.strategy.broadcast(here)
        if not trainer.loggers:
            _set_root(trainer, folder)
        for logger, version in zip(loggers, versions, strict=True):
            logger._version = version
        path = Path(trainer.log_dir or folder, self.config_filename)
        if not trainer.is_global_zero:
            return super().setup(trainer, pl_module, stage)
        set_aside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                self.config_filename = part.name
                super().setup(trainer, pl_module, stage)
        except UserError:
            raise
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            self.config_filename = path.name
