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
from m2chat.models.weights.files import read_pickled


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file in the target's folder, adds a checksum, syncs and renames; verifies it on loading."""

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
        temporary = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target.parent)
            with open(temporary, "w+b") as file:
                torch.save(checkpoint, file)
                seal_zip(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            written = temporary.stat().st_size if temporary.exists() else 0
            free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
            raise UserError(
                f"cannot write the checkpoint {target}: {error} ({written:,} bytes were written, {free:,} are free). "
                "An older file of that name is untouched; make room or set another dirpath for ModelCheckpoint"
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


def sweep(folder: Path) -> None:
    """Removes temporary files that killed processes of this machine left in a folder."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


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
