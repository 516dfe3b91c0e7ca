"""`m2chat release-weights`: the small file of trained weights that is shipped, from a training checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2chat.commands.arguments import existing, new_file

KEPT = ("m2chat", "tasks", "costs", "config", "pytorch-lightning_version", "epoch", "global_step")
"""Entries that are kept beside the weights: their description, and what `--ckpt_path` needs to evaluate them."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("release-weights", help="make the small file of weights from a training checkpoint")
    parser.add_argument("stage", choices=("align", "m3ft"), help="the stage that must have written the checkpoint")
    parser.add_argument("checkpoint", type=existing("file", "name a .ckpt file of a run"), help="a .ckpt file of a run")
    parser.add_argument("out", type=new_file, help="file to write, such as data/micro/m2chat/align.ckpt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Writes the file and prints its size."""
    count = release_weights(options.stage, options.checkpoint, options.out)
    print(f"{options.out}: {count:,} numbers in fp16, {options.out.stat().st_size:,} bytes")


def release_weights(stage: str, checkpoint: Path, out: Path) -> int:
    """Writes a checkpoint without optimiser and loops, its weights in fp16.

    Args:
        stage: The stage that must have written it.
        checkpoint: File to read.
        out: File to write; `load_trained` reads it into fp32 parameters.

    Returns:
        Count of the numbers in it.

    Raises:
        UserError: If the checkpoint is of another stage, or holds numbers that fp16 cannot.
    """
    from m2chat.errors import UserError
    from m2chat.models.checkpoints import check_header, read_checkpoint
    from m2chat.training.atomic_io import AtomicCheckpointIO

    payload = read_checkpoint(checkpoint)
    check_header(payload, str(checkpoint), stage, None)
    state = {name: tensor.half() for name, tensor in payload["state_dict"].items()}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(f"{checkpoint}: {bad[0]} holds numbers that fp16 cannot (above 65504, or not finite)")
    kept = {name: payload[name] for name in KEPT if name in payload}
    AtomicCheckpointIO().save_checkpoint({**kept, "state_dict": state}, out)
    return sum(tensor.numel() for tensor in state.values())
