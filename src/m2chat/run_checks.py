"""Around a run: the checkpoint that it goes on with, whether it is shortened, what it has saved, what follows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from m2chat.errors import UserError

LENGTHS = (
    "trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.limit_train_batches",
    "trainer.overfit_batches", "trainer.fast_dev_run", "data.samples_per_epoch",
)  # fmt: skip
"""Settings by which the command line may make a training shorter."""


def require_checkpoint(trainer: Trainer, chosen: str) -> None:
    """Makes sure that there is a checkpoint where Lightning looks for the ``best``, ``last`` or ``hpc`` one.

    Without a last one, Lightning trains from scratch, or tests the weights that happen to be there.

    Raises:
        UserError: If there is none.
    """
    savers = [item for item in trainer.checkpoint_callbacks if isinstance(item, ModelCheckpoint)]
    if chosen == "last":
        there = any(saver._find_last_checkpoints(trainer) for saver in savers)
    elif chosen == "best":  # known only to a callback that has saved in this process
        there = any(saver.best_model_path for saver in savers)
    else:
        there = bool(trainer._checkpoint_connector._hpc_resume_path)
    if not there:
        logs = {Path(getattr(logger, "root_dir", None) or logger.save_dir or ".") for logger in trainer.loggers}
        files = [path for root in logs for path in root.glob("**/checkpoints/*.ckpt")]
        newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
        such = "a file" if newest is None else f"a file; the newest is {os.path.relpath(newest)}"
        raise UserError(f"--ckpt_path {chosen}: the folder of this run holds no such checkpoint: name {such}")


def shortened(arguments: Sequence[str], settings: Namespace, read: Callable[[Sequence[str]], Namespace]) -> list[str]:
    """Settings of the command line that make a training shorter than its configuration files do.

    Args:
        arguments: Of the command line.
        settings: With the command line.
        read: Gives the settings of other arguments.
    """
    given = [argument.partition("=")[0] for argument in arguments]
    names = [name for name in LENGTHS if f"--{name}" in given]
    if not names:
        return []
    try:
        whole = read([item for file in config_files(arguments) for item in ("--config", file)])
    except UserError:  # the files alone are no whole configuration: the command line is part of it
        return []
    return [f"{name}={settings.get(name)}" for name in names if is_shorter(name, settings.get(name), whole.get(name))]


def is_shorter(name: str, given: Any, configured: Any) -> bool:
    """Whether a setting of the command line makes a training shorter than that of the configuration.

    Args:
        name: Name of the setting, one of `LENGTHS`.
        given: Value with the command line.
        configured: Value without it.
    """
    if given == configured:
        return False
    if name in ("trainer.max_steps", "trainer.max_epochs", "data.samples_per_epoch"):
        endless = [math.inf if value in (None, -1) else value for value in (given, configured)]
        return bool(endless[0] < endless[1])
    if name == "trainer.limit_train_batches":
        return given not in (None, 1.0)
    return bool(given)


def config_files(arguments: Sequence[str]) -> Iterator[str]:
    """The files that ``--config`` names."""
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            yield value if equals else "".join(arguments[number + 1 : number + 2])


def newest_saved(trainer: Trainer) -> str:
    """Path of the checkpoint that a training has written last; empty if there is none."""
    paths = [getattr(saver, name, "") for saver in trainer.checkpoint_callbacks for name in _SAVED]
    there = [path for path in paths if path and Path(path).exists()]
    newest = max(there, key=lambda path: Path(path).stat().st_mtime_ns, default="")
    inside = newest and Path(newest).resolve().is_relative_to(Path.cwd())
    return os.path.relpath(newest) if inside else newest


_SAVED = ("last_model_path", "best_model_path")


def next_command(stage: str, checkpoint: str, files: Sequence[str], shortened: bool) -> str:
    """The command that usually follows a training.

    Args:
        stage: Stage that was trained.
        checkpoint: Path of its checkpoint.
        files: Configuration files of the training; the next ones are looked for beside them.
        shortened: Whether the next run would pass the checkpoint over, so that it must be named.

    Returns:
        A line, or two; empty if nothing usually follows.
    """
    beside = Path(files[0]).parent if files else Path("configs")
    if stage == "align" and (beside / "stage2.yaml").is_file():
        naming = f" --model.init_args.init_from {checkpoint}" if shortened else ""
        return f"Next: lightning fit --config {beside / 'stage2.yaml'}{naming}"
    if stage == "m3ft":
        naming = f" --ckpt_path {checkpoint}" if shortened else ""
        lines = [f"Next: m2chat chat --model {checkpoint}"]
        if (beside / "eval_mmdialog.yaml").is_file():
            lines.append(f"  or: lightning test --config {beside / 'eval_mmdialog.yaml'}{naming}")
        return "\n".join(lines)
    return ""
