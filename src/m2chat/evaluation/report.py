"""The table of an evaluation, the paper's numbers beside it: ``python -m m2chat.evaluation.report``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.evaluation.paper import paper_values
from m2chat.evaluation.results import IMAGES, RESULTS, read_results
from m2chat.evaluation.statistics import Estimate

_HEADER = ("metric", "value", "95 % interval", "n", "paper (7B, real data)")
_SHOWN = ("checkpoint", "stage", "layout", "seed", "steps", "guidance", "clip_score_encoder", "fid_extractor")
NOTE = "The paper's column was measured with other weights on other data; `fid_micro` is not FID."


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def table(metrics: Mapping[str, Estimate], dataset: str = "") -> str:
    """A markdown table of metrics, aligned so that it also reads as plain text.

    Args:
        metrics: Name to value.
        dataset: Whose numbers of the paper to show: ``coco``, ``cc3m`` or ``mmdialog``.
    """
    paper = paper_values(dataset)
    rows = [_HEADER]
    for name, item in metrics.items():
        interval = "" if math.isnan(item.low) else f"{_number(item.low)} ... {_number(item.high)}"
        count = "" if item.n is None else str(item.n)
        theirs = paper.get("fid" if name == "fid_micro" else name)
        rows.append((name, _number(item.value), interval, count, "" if theirs is None else f"paper: {theirs:.2f}"))
    return aligned(rows)


def kinds_table(metrics: Mapping[str, Estimate]) -> str:
    """The metrics called ``name/kind``, one kind of sample a column; empty if there are none."""
    names = [name.split("/") for name in metrics if "/" in name]
    kinds = sorted({kind for _, kind in names})
    rows = [("metric", *kinds)]
    for name in dict.fromkeys(name for name, _ in names):
        values = [metrics.get(f"{name}/{kind}") for kind in kinds]
        rows.append((name, *("" if item is None else _number(item.value) for item in values)))
    return aligned(rows) if kinds else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table whose first row is the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(path: Path) -> str:
    """Everything to know about one ``results.json``: what was measured, the table, and where the pictures are."""
    metrics, protocol = read_results(path)
    dataset = str(protocol.get("dataset") or "")
    facts: dict[str, Any] = {name: protocol[name] for name in _SHOWN if protocol.get(name) is not None}
    lines = [f"## {dataset or path.parent.name}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", table({name: item for name, item in metrics.items() if "/" not in name}, dataset), "", NOTE]
    if by_kind := kinds_table(metrics):
        lines += ["", by_kind, ""]
    if (path.parent / IMAGES).is_dir():
        lines.append(f"Pictures: {path.parent / IMAGES}")
    return "\n".join(lines)


def newest(root: Path) -> Path:
    """The newest ``results.json`` below a folder.

    Raises:
        UserError: If there is none.
    """
    found = sorted(root.rglob(RESULTS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"no {RESULTS} below {str(root)!r}; run `lightning test --config configs/eval_mmdialog.yaml` first"
        )
    return found[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints reports, and the command that shows the curves."""
    parser = argparse.ArgumentParser(description="Prints the metrics of evaluations beside the paper's.")
    parser.add_argument(
        "paths", nargs="*", type=Path, help=f"{RESULTS} files; the newest below --root if none is given"
    )
    parser.add_argument("--root", type=Path, default=Path("lightning_logs"), help="where runs are logged")
    options = parser.parse_args(arguments)
    for path in options.paths or [newest(options.root)]:
        print(report(path) + "\n")
    print(f"Curves and pictures: tensorboard --logdir {options.root}")


if __name__ == "__main__":
    main()
