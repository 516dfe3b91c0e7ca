"""`m2chat weights inspect`: what a file or folder of weights is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2chat.commands.arguments import existing

if TYPE_CHECKING:
    from m2chat.commands.weights.examine import Inventory


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser("inspect", help="say what a file or folder of weights is")
    parser.add_argument("source", type=existing(), help="a file or folder of weights")
    add_visual_heads(parser)
    parser.set_defaults(run=run)


def add_visual_heads(parser: argparse.ArgumentParser) -> None:
    """Adds what an adapter file may not state."""
    parser.add_argument(
        "--visual-heads",
        type=int,
        metavar="N",
        help="heads of the visual blocks of an adapter file that does not state them and is none of the published ones",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the facts; reads no more than headers where the format allows it.

    Raises:
        UserError: If it cannot be read, or is nothing that is known here.
    """
    from m2chat.commands.weights.examine import examine

    show(options.source, examine(options.source, visual_heads=options.visual_heads))


def show(source: Path, findings: Inventory) -> None:
    """Prints the findings."""
    from m2chat.commands.data.printing import printable

    print(f"{source}: {findings.kind.value}")
    for name, value in findings.facts.items():
        print(f"  {name:<28}  {printable(value)}")
    for path in findings.files:
        print(f"  {named(path, source):<48}  {path.stat().st_size:,} bytes")
    for warning in findings.warnings:
        print(f"  note: {warning}")


def named(path: Path, source: Path) -> str:
    """A file's name as a person would look for it in what was named."""
    return str(path.relative_to(source)) if path.is_relative_to(source) and path != source else path.name
