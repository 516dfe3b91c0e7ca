"""`m2chat data micro`: generates the micro data set."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser("micro", help="generate the micro data set, unless it is there already")
    parser.add_argument("--root", type=Path, default=Path("data/micro/shards"), help="where to (default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Generates the micro data set."""
    from m2chat.data.micro_world import ensure_micro_shards

    ensure_micro_shards(options.root)
    print(f"The micro data set is in {options.root}")
