"""Runs the rows of the tables, one after another, and keeps the results of each.

Nothing is done twice: a training with the checkpoint of its end, and an evaluation whose results are kept, are left
alone. So an interrupted run continues where it stopped, in the middle of a training too.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.evaluation.results import RESULTS
from m2chat.evaluation.rows import RunFolders, TableRow
from m2chat.files import locked, whole_file


@dataclass(frozen=True)
class Runner:
    """Runs rows.

    Args:
        folders: Folders of the runs.
        results: Folder in which the results of each row are kept.
        configs: Folder of the configurations that rows name.
        lightning: Command that trains and evaluates.
        extra: Further arguments of all its calls, such as ``--trainer.max_steps=3``.
        dry: Whether to print the commands only.
    """

    folders: RunFolders
    results: Path
    configs: Path = Path("configs")
    lightning: str = "lightning"
    extra: tuple[str, ...] = ()
    dry: bool = False

    def row(self, row: TableRow, seed: int, evaluations: Iterable[str] | None = None) -> None:
        """Runs what is missing of a row.

        Args:
            row: Row of the tables.
            seed: Training seed.
            evaluations: Evaluations to run; None means all of the row.

        Raises:
            UserError: If a run fails.
        """
        missing = []
        for name in row.evaluations() if evaluations is None else evaluations:
            kept = self._kept(row, seed, name)
            if kept.is_file():
                continue
            if (path := self.folders.evaluation(row, seed, name) / RESULTS).is_file():
                self._keep(path, kept)
            else:
                missing.append(name)
        if not missing:
            return
        weights = self.folders.seed(seed)  # the folder in which a stage looks for the checkpoint of the one before
        for name in row.shares:
            weights = self._train(name, None, seed, self.folders.seed(seed) / name, weights)
        for name in row.trains:
            weights = self._train(name, row.config, seed, self.folders.row(row, seed) / name, weights)
        for name in missing:
            folder = self.folders.row(row, seed) / name
            root = weights if row.shares or row.trains else None
            self._lightning(["test", *self._settings(name, row.config)], seed, folder, root)
            if not self.dry:
                self._keep(folder / RESULTS, self._kept(row, seed, name))

    def _kept(self, row: TableRow, seed: int, name: str) -> Path:
        return self.results / row.name / f"seed_{seed}" / f"{name}.json"

    def _keep(self, path: Path, kept: Path) -> None:
        if self.dry:
            print(f"# keeps {path} as {kept}")
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as part:
            shutil.copyfile(path, part)
        print(f"kept {kept}", flush=True)

    def _settings(self, name: str, overlay: Path | None) -> list[str]:
        files = [self.configs / f"{name}.yaml", *([] if overlay is None else [overlay])]
        return [argument for file in files for argument in ("--config", str(file))]

    def _train(self, name: str, overlay: Path | None, seed: int, folder: Path, weights: Path) -> Path:
        """Makes sure that a training is finished; returns its folder."""
        checkpoint = _newest_checkpoint(folder)
        if checkpoint is not None and _finished(checkpoint, folder):
            return folder
        resume = [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
        self._lightning(["fit", *self._settings(name, overlay), *resume], seed, folder, weights)
        return folder

    def _lightning(self, arguments: list[str], seed: int, folder: Path, weights: Path | None) -> None:
        """Calls ``lightning`` with a run's folder and the folder of the weights that it starts from."""
        logger = "--trainer.logger"
        command = [
            *shlex.split(self.lightning), *arguments, "--seed_everything", str(seed), logger, "TensorBoardLogger",
            f"{logger}.save_dir", ".", f"{logger}.name", str(folder.parent), f"{logger}.version", folder.name,
            *([] if weights is None else ["--model.init_args.checkpoint_root", str(weights)]), *self.extra,
        ]  # fmt: skip
        print(shlex.join(command), flush=True)
        if not self.dry and "--ckpt_path" not in arguments:
            clear(folder)
        if not self.dry and (code := call(command)):
            raise UserError(f"{folder} failed with exit code {code}; run the same command again to continue from here")


def call(command: Sequence[str]) -> int:
    """Runs the command that evaluates or trains, and returns its exit code.

    Raises:
        UserError: If there is no such command.
    """
    try:
        return subprocess.run(command).returncode
    except OSError as error:
        raise UserError(
            f"--lightning {command[0]!r}: {error.strerror}; leave it out, or name the command of m2chat's environment"
        ) from error


def clear(folder: Path) -> None:
    """Removes what a run has left that was stopped before there was anything to go on from.

    Raises:
        UserError: If a run writes to it at this moment.
    """
    if folder.exists():
        with locked(folder, wait=False):
            shutil.rmtree(folder)


def _newest_checkpoint(folder: Path) -> Path | None:
    paths = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return paths[-1] if paths else None


def _finished(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is that of the last epoch or step of its run, not one that a signal saved before."""
    if checkpoint.stem == "interrupted":
        return False
    import yaml

    from m2chat.models.checkpoints import read_checkpoint

    payload: dict[str, Any] = read_checkpoint(checkpoint)
    trainer = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps") or -1
    return bool(0 < steps <= payload["global_step"] or (epochs and payload["epoch"] + 1 >= epochs))
