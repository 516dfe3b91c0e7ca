"""`m2chat backbones`: rebuilds the micro backbones, measures them, keeps their manifest."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "backbones", help="pretrain the micro backbones again (80 minutes of one core), measure or verify them"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="parts to make; all by default")
    parser.add_argument("--out", type=Path, default=Path("data/micro"), help="folder (default: %(default)s)")
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
        UserError: If a part does not exist or lacks what it rests on, or the files differ from the manifest.
    """
    from m2chat.errors import UserError
    from m2chat.worlds.shapes.recipe.build import build, measure
    from m2chat.worlds.shapes.recipe.manifest import verify_manifest, write_manifest
    from m2chat.worlds.shapes.recipe.parts import PARTS
    from m2chat.worlds.shapes.recipe.trained import trained_facts

    if unknown := [name for name in options.only if name not in PARTS]:
        raise UserError(f"--only {' '.join(unknown)}: choose of {', '.join(PARTS)}")
    if options.evaluations and not options.manifest:
        raise UserError("--evaluations is of use with --manifest only: add it")
    if options.verify:
        if faults := verify_manifest(options.out):
            raise UserError(f"{options.out} differs from its manifest: {'; '.join(faults)}")
        print(f"{options.out} is as its manifest says")
    elif options.manifest:
        facts = {"m2chat": trained_facts(options.out, options.evaluations)} if options.evaluations else {}
        print(f"Manifest: {write_manifest(options.out, facts)}")
    else:
        (measure if options.measure else build)(options.out, options.only)
