"""`m2chat data`: everything about shards, a module an action."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command with its actions."""
    from m2chat.commands.data import caption, convert, inspect, micro

    parser = commands.add_parser("data", help="convert data to shards, look into them; generate the micro data set")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for module in (micro, convert, caption, inspect):
        module.add(actions)
