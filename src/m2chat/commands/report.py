"""`m2chat report`: the tables of evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("report", help="print the metrics of evaluations beside the paper's")
    parser.add_argument("paths", nargs="*", type=Path, help="results.json files; the newest below --root if none")
    parser.add_argument("--root", type=Path, default=Path("lightning_logs"), help="where runs are logged")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the tables.

    Raises:
        UserError: If there are no results, or a file is something else.
    """
    from m2chat.evaluation.report import main

    main([*map(str, options.paths), "--root", str(options.root)])
