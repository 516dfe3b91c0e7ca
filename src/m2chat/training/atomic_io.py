"""Writing checkpoints so that a crash, a full disk or a flipped bit never costs the previous one.

Lightning's writer goes through a temporary file in TMPDIR, and copies it over the old checkpoint where that is
another file system: a full disk then destroys the old one. Ours writes beside the target, makes sure that the bytes
are on disk, and renames.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from m2chat.checksums import seal_zip
from m2chat.errors import UserError
from m2chat.files import cannot_write, put_in_place
from m2chat.models.weights.files import read_pickled


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file in the target's folder, adds a checksum, syncs and renames; verifies it on loading.

    A checkpoint can be wrecked without a sign of it in the file: weights of a training that has begun to diverge. With
    `keep_replaced`, the files that a new checkpoint replaces, and those that are to be removed for its sake, stay on
    disk until `settle` decides, one training step later as a rule.
    """

    def __init__(self) -> None:
        self._keeps = False
        self._replaced: dict[Path, Path | None] = {}  # new files since the last decision, and what was there before
        self._removed: list[Path] = []

    def keep_replaced(self) -> None:
        """Keeps what checkpoints replace from now on, until `settle` decides."""
        self._keeps = True

    def settle(self, good: bool) -> list[Path]:
        """Decides on the checkpoints that were written since the last decision.

        Args:
            good: Whether they are; else they are removed, and the former ones come back.

        Returns:
            The former ones that came back or were not removed; empty if the new ones are good.
        """
        kept: list[Path] = []
        for path, former in self._replaced.items():
            if good and former is not None:
                _remove(former)
            elif not good and former is not None and former.exists():
                put_in_place(former, path)
                _remove(former)
                kept.append(path)
            elif not good:
                _remove(path)
        for path in self._removed:
            if good:
                super().remove_checkpoint(path)
            elif path.exists():
                kept.append(path)
        self._replaced, self._removed = {}, []
        return kept

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint; with `keep_replaced`, at the next good decision."""
        if self._keeps and Path(path) not in self._replaced:
            self._removed.append(Path(path))
        else:
            super().remove_checkpoint(path)

    def _keep(self, target: Path) -> None:
        """Gives the file that is going to be replaced a second, hidden name, which costs no room of its own."""
        if not self._keeps or target in self._replaced:
            return
        if target in self._removed:
            self._removed.remove(target)
        former: Path | None = None
        if target.is_file():
            former = beside(target, "replaced")
            former.unlink(missing_ok=True)
            try:
                os.link(target, former)
            except OSError:  # a file system without such names: nothing is kept there
                return
        self._replaced[target] = former

    def put_shares(self, part: Path, target: Path) -> None:
        """Gives a folder of shares, which all processes have written, its name; the former one stays until then.

        Args:
            part: The folder, beside its place.
            target: Its place.
        """
        is_first = target not in self._replaced
        if target in self._removed:
            self._removed.remove(target)
        _sync_folder(part)
        was_there = target.exists()
        put_in_place(part, target)
        _sync_folder(target.parent)
        former: Path | None = None
        if was_there and self._keeps and is_first:
            former = beside(target, "replaced")
            _remove(former)
            part.rename(former)
        if self._keeps and is_first:
            self._replaced[target] = former
        _remove(part)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint; until the last moment the old file of that name stays whole.

        Args:
            checkpoint: Contents, as `torch.save` can write them.
            path: Local file to write.
            storage_options: Must be None.

        Raises:
            UserError: If the disk is full or the folder cannot be written.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO takes no storage_options: it writes local files only")
        target = Path(path)
        temporary = beside(target, "part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            with open(temporary, "w+b") as file:
                torch.save(checkpoint, file)
                seal_zip(file)
                file.flush()
                os.fsync(file.fileno())
            self._keep(target)
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            written = temporary.stat().st_size if temporary.exists() else 0
            reason = error
            while not isinstance(reason, OSError) and isinstance(reason.__context__, OSError | RuntimeError):
                reason = reason.__context__  # what the system reported, where torch lets it through
            message = cannot_write(target, reason, _bytes_of(checkpoint), written)
            raise UserError(
                f"{message}, such as a dirpath for ModelCheckpoint. An older file of that name is untouched"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint after verifying its checksum; a file without one is read as it is.

        Args:
            path: The file.
            map_location: Device of its tensors, as in `torch.load`; None for the CPU.
            weights_only: Ignored: nothing but tensors and plain values is ever read.

        Raises:
            UserError: If the file is missing or damaged.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"there is no checkpoint file {file}")
        payload: dict[str, Any] = read_pickled(file, "checkpoint", mmap=False, map_location=map_location or "cpu")
        return payload


def _bytes_of(content: Any) -> int:
    """Bytes of the tensors in a checkpoint, which is nearly all of its size."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(_bytes_of(value) for value in content.values())
    return sum(_bytes_of(value) for value in content) if isinstance(content, list | tuple) else 0


def beside(target: Path, kind: str) -> Path:
    """A hidden name beside a checkpoint, which `sweep` removes when this process is gone."""
    return target.with_name(f".{target.name}.{kind}.{socket.gethostname()}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes temporary files and folders that killed processes of this machine left in a folder."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not _alive(int(pid)):
            _remove(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
