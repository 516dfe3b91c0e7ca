"""`m2chat data`: the actions on shards, one module each."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command with its actions."""
    from m2chat.commands.data import caption, convert, features, inspect, micro, stats, subset, validate

    parser = commands.add_parser("data", help="convert data to shards; look into them, check them, choose from them")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for module in (micro, convert, caption, inspect, validate, stats, subset, features):
        module.add(actions)
