"""`m2chat backbones`: rebuilds the backbones of a world, measures them, keeps their manifest."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "backbones", help="pretrain the micro backbones again (80 minutes of one core), measure or verify them"
    )
    parser.add_argument(
        "--world", default="shapes", help="shapes: the micro backbones; emoji: the pocket ones (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="parts to make; all by default")
    parser.add_argument("--out", type=Path, help="folder (default: data/micro, or data/pocket)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--measure", action="store_true", help="train nothing: measure again what is there")
    instead.add_argument("--manifest", action="store_true", help="train nothing: write the manifest of what is there")
    instead.add_argument("--verify", action="store_true", help="train nothing: compare the files with the manifest")
    parser.add_argument(
        "--evaluations",
        nargs="+",
        type=Path,
        metavar="RUN",
        default=[],
        help="with --manifest: evaluations of the shipped M²Chat weights, to quote",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Does what the options say.

    Raises:
        UserError: If a world or a part does not exist or lacks what it rests on, or the files differ from the manifest.
    """
    from m2chat.errors import UserError
    from m2chat.worlds.backbones import build, measure
    from m2chat.worlds.manifest import verify_manifest, write_manifest
    from m2chat.worlds.parts import backbones_of
    from m2chat.worlds.trained import trained_facts

    backbones = backbones_of(options.world)
    root = options.out or backbones.root
    if unknown := [name for name in options.only if name not in backbones.parts]:
        raise UserError(f"--only {' '.join(unknown)}: choose of {', '.join(backbones.parts)}")
    if options.evaluations and not options.manifest:
        raise UserError("--evaluations is of use with --manifest only: add it")
    if options.verify:
        if faults := verify_manifest(root, backbones):
            raise UserError(f"{root} differs from its manifest: {'; '.join(faults)}")
        print(f"{root} is as its manifest says")
    elif options.manifest:
        facts = {"m2chat": trained_facts(root, options.evaluations)} if options.evaluations else {}
        print(f"Manifest: {write_manifest(root, backbones, facts)}")
    else:
        (measure if options.measure else build)(root, backbones, options.only)
