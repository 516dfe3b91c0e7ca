"""From a folder of shares, one a process, to the one file that any number of processes can go on with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME

from m2chat.errors import UserError
from m2chat.models.checkpoints import HEADER
from m2chat.training.atomic_io import AtomicCheckpointIO


def consolidate(folder: Path, out: Path) -> int:
    """Writes a checkpoint of `M2ChatFSDPStrategy(save_distributed_checkpoint=True)` as one file.

    Lightning's own command does so for FSDP1 only.

    Args:
        folder: Of the shares.
        out: File to write; weights, optimiser and progress are those of the folder.

    Returns:
        How many trained numbers it holds.

    Raises:
        UserError: If the folder is not such a checkpoint, or shares are missing.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if not (folder / _METADATA_FILENAME).is_file() or not (folder / ".metadata").is_file():
        raise UserError(
            f"{folder} is no checkpoint in shares: those are folders with a {_METADATA_FILENAME}, a .metadata and a "
            ".distcp file a process, which a run writes with save_distributed_checkpoint: true"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        file = Path(scratch) / "whole.pt"
        try:
            dcp_to_torch_save(folder, file)
        except (CheckpointException, OSError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"{folder}: a share is missing or damaged ({reason}): copy the folder again") from error
        shares: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        rest: dict[str, Any] = torch.load(folder / _METADATA_FILENAME, map_location="cpu", weights_only=True)
        if HEADER not in rest:
            raise UserError(f"{folder} is not a checkpoint of M2Chat: it has no '{HEADER}' entry")
        names = sorted((name for name in shares if name.startswith("optimizer_")), key=lambda name: int(name[10:]))
        whole = {
            **rest,
            "state_dict": shares["state_dict"],
            "optimizer_states": [_numbered(shares[name]) for name in names],
        }
        AtomicCheckpointIO().save_checkpoint(whole, out)
    return sum(tensor.numel() for tensor in shares["state_dict"].values())


def _numbered(named: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with parameters known by their number in its order, as torch's own optimisers want it."""
    order = [name for group in named["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(order)}
    return {
        "state": {number[name]: state for name, state in named["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in named["param_groups"]
        ],
    }
