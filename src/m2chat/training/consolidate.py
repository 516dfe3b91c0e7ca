"""From a folder of shares, one a process, to the one file that any number of processes can go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.models.checkpoints import HEADER
from m2chat.training.atomic_io import AtomicCheckpointIO


def consolidate(folder: Path, out: Path) -> int:
    """Writes a checkpoint of `M2ChatFSDPStrategy(save_distributed_checkpoint=True)` as one file.

    Lightning's command does so for FSDP1 only.

    Args:
        folder: Sharded checkpoint.
        out: File to write; weights, optimiser and progress are those of the folder.

    Returns:
        How many trained numbers it holds.

    Raises:
        UserError: If the folder is not such a checkpoint, or shares are missing.
    """
    from m2chat.training.shares import METADATA, REST, is_shares, read_rest, read_shares, verify_shares

    if not is_shares(folder) or not (folder / METADATA).is_file():
        raise UserError(
            f"{folder} is no checkpoint in shares: those are folders with a {REST}, a {METADATA} and a .distcp file a "
            "process, which a run writes with save_distributed_checkpoint: true"
        )
    verify_shares(folder)
    rest = read_rest(folder)
    if HEADER not in rest:
        raise UserError(f"{folder} is not a checkpoint of M2Chat: it has no '{HEADER}' entry")
    shares = read_shares(folder)
    names = sorted((name for name in shares if name.startswith("optimizer_")), key=lambda name: int(name[10:]))
    whole = {
        **rest,
        "state_dict": shares["state_dict"],
        "optimizer_states": [_numbered(shares[name]) for name in names],
    }
    AtomicCheckpointIO().save_checkpoint(whole, out)
    return sum(tensor.numel() for tensor in shares["state_dict"].values())


def _numbered(named: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with parameters known by their number in its order, as torch's optimisers expect it."""
    order = [name for group in named["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(order)}
    return {
        "state": {number[name]: state for name, state in named["state"].items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in named["param_groups"]
        ],
    }
