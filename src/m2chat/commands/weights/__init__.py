"""`m2chat weights`: what files of weights are, whether they are whole, and other forms of them; a module an action."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command with its actions."""
    from m2chat.commands.weights import check, convert, fetch, inspect

    parser = commands.add_parser("weights", help="look into files of weights, check them, convert and export them")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for module in (inspect, check, convert, fetch):
        module.add(actions)
