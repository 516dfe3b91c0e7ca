"""Runs the rows of the tables, one after another, and keeps what each has measured.

What is there is never done again: a training whose last checkpoint says that it is finished, an evaluation whose
results are kept. So an interrupted run goes on where it stopped, in the middle of a training too.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.commands.evaluation.rows import Fit, Row
from m2chat.errors import UserError
from m2chat.evaluation.results import RESULTS
from m2chat.files import locked, whole_file


@dataclass(frozen=True)
class Runner:
    """Runs rows.

    Args:
        shared: Holds ``seed_<n>`` as `scripts/seed.sh` writes them: trainings that several rows start from.
        own: Where the rows' own runs are logged.
        results: Where their results are kept.
        lightning: The command.
        extra: Arguments for all its calls, such as ``--trainer.max_steps=3``.
        dry: Only says what would be run.
    """

    shared: Path
    own: Path
    results: Path
    lightning: str = "lightning"
    extra: tuple[str, ...] = ()
    dry: bool = False

    def row(self, row: Row, seed: int) -> None:
        """Runs what is missing of a row.

        Raises:
            UserError: If a run fails.
        """
        kept = self.results / row.name / f"seed_{seed}"
        missing = [name for name in row.tests if not (kept / f"{name}.json").is_file()]
        for name in list(missing):
            if (path := self._found(row, seed, name)).is_file():
                self._keep(path, kept / f"{name}.json")
                missing.remove(name)
        if not missing:
            return
        start = self.shared / f"seed_{seed}"  # where a stage looks for the one before it
        for fit in row.fits:
            start = self._fit(row, fit, seed, start)
        for name in missing:
            folder = self._folder(row, seed) / name
            arguments = ["test", "--config", f"configs/{name}.yaml", *self._overlay(row), *row.arguments]
            self._lightning(arguments, seed, folder, start if row.fits else None)
            if not self.dry:
                self._keep(folder / RESULTS, kept / f"{name}.json")

    def _folder(self, row: Row, seed: int) -> Path:
        return self.own / f"seed_{seed}" / row.name

    def _found(self, row: Row, seed: int, name: str) -> Path:
        """Where the results of an evaluation are, if it was run already: by us or by `scripts/seed.sh`."""
        own = self._folder(row, seed) / name / RESULTS
        shared = self.shared / f"seed_{seed}" / row.shared.get(name, "none") / RESULTS
        return shared if shared.is_file() and not own.is_file() else own

    def _keep(self, found: Path, kept: Path) -> None:
        if self.dry:
            print(f"# keeps {found} as {kept}")
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as part:
            shutil.copyfile(found, part)
        print(f"kept {kept}", flush=True)

    def _overlay(self, row: Row) -> list[str]:
        return ["--config", f"configs/{row.overlay}.yaml"] if row.overlay else []

    def _fit(self, row: Row, fit: Fit, seed: int, before: Path) -> Path:
        """Makes sure that a training is finished, and returns its folder."""
        home = self._folder(row, seed) if fit.own else self.shared / f"seed_{seed}"
        folder = home / fit.name
        checkpoint = _newest_checkpoint(folder)
        if checkpoint is not None and _finished(checkpoint, folder):
            return folder
        arguments = ["fit", "--config", f"configs/{fit.config}.yaml", *(self._overlay(row) if fit.own else [])]
        if checkpoint is not None:
            arguments += ["--ckpt_path", str(checkpoint)]
        self._lightning(arguments, seed, folder, before)
        return folder

    def _lightning(self, arguments: list[str], seed: int, folder: Path, root: Path | None) -> None:
        logger = "--trainer.logger"
        command = [
            *shlex.split(self.lightning), *arguments, "--seed_everything", str(seed), logger, "TensorBoardLogger",
            f"{logger}.save_dir", ".", f"{logger}.name", str(folder.parent), f"{logger}.version", folder.name,
            *(["--model.init_args.checkpoint_root", str(root)] if root is not None else []), *self.extra,
        ]  # fmt: skip
        print(shlex.join(command), flush=True)
        if not self.dry and "--ckpt_path" not in arguments:
            _clear(folder)
        if not self.dry and (code := subprocess.run(command).returncode):
            raise UserError(f"{folder} failed with exit code {code}; the same command goes on from here")


def _clear(folder: Path) -> None:
    """Removes what a run has left that was stopped before there was anything to go on from.

    Raises:
        UserError: If a run writes to it at this moment.
    """
    if folder.exists():
        with locked(folder, wait=False):
            shutil.rmtree(folder)


def _newest_checkpoint(folder: Path) -> Path | None:
    found = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def _finished(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is that of the last epoch or step of its run, and not saved within it by a signal."""
    if checkpoint.stem == "interrupted":
        return False
    import yaml

    from m2chat.models.checkpoints import read_checkpoint

    payload: dict[str, Any] = read_checkpoint(checkpoint)
    trainer = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps") or -1
    return bool(0 < steps <= payload["global_step"] or (epochs and payload["epoch"] + 1 >= epochs))


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of these names, in the order of the tables; all if there are none.

    Raises:
        UserError: If there is no such row.
    """
    if unknown := set(names) - {row.name for row in rows}:
        raise UserError(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(row.name for row in rows)}")
    return [row for row in rows if not names or row.name in names]
