"""`m2chat data micro`: the data set of a generated world, made on this machine."""

from __future__ import annotations

import argparse

from m2chat.commands.arguments import new_folder


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = actions.add_parser("micro", help="generate the data sets of a world, unless they are there already")
    parser.add_argument("--world", default="shapes", help="name of the generated world (default: %(default)s)")
    parser.add_argument("--root", type=new_folder, help="folder to write; the world's usual one by default")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Generates it."""
    from m2chat.world import find_world, generate_shards

    root = options.root or find_world(options.world, "--world").shards
    world = generate_shards(options.world, root, "--world")
    print(f"The data sets of the {world.name} world are in {root}")
