"""`m2chat report`: evaluations as tables, beside the paper's numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2chat.commands.arguments import existing


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("report", help="print the metrics of evaluations beside the paper's")
    parser.add_argument("paths", nargs="*", type=existing(), help="results.json files; the newest below --root if none")
    parser.add_argument("--root", type=Path, default=Path("lightning_logs"), help="folder of the runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the tables, and the command that shows the curves.

    Raises:
        UserError: If there are no results, or a file holds none.
    """
    from m2chat.evaluation.page import report
    from m2chat.evaluation.results import newest_results

    for path in options.paths or [newest_results(options.root)]:
        print(report(path) + "\n")
    print(f"Curves and pictures: tensorboard --logdir {options.root}")
