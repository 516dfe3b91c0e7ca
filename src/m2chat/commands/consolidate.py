"""`m2chat consolidate`: one checkpoint file from a sharded checkpoint."""

from __future__ import annotations

import argparse

from m2chat.commands.arguments import existing, new_file


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("consolidate", help="make one file of a sharded checkpoint")
    parser.add_argument(
        "folder",
        type=existing("folder", "name a checkpoint folder of a sharded run"),
        help="the checkpoint: a folder that ends in .ckpt",
    )
    parser.add_argument("out", type=new_file, help="file to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Writes the file and prints its size.

    Raises:
        UserError: If the folder is not such a checkpoint.
    """
    from m2chat.training.consolidate import consolidate

    count = consolidate(options.folder, options.out)
    print(f"{options.out}: {count:,} trained numbers, {options.out.stat().st_size:,} bytes")
