"""Mean and spread of evaluations over seeds: ``python -m m2chat.evaluation.tables ROOT OUT``.

Reads every ``results.json`` under ``ROOT/seed_<n>/``. Evaluations of one name, that of their folder, are one table;
``version_<n>`` is no name, then the data set's is taken, and the newest version of a seed counts.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.evaluation.compare import compare
from m2chat.evaluation.paper import paper_values
from m2chat.evaluation.report import NOTE, aligned
from m2chat.evaluation.results import PREDICTIONS, RESULTS, natural, read_results

Values = dict[str, dict[int, float]]
"""Metric to seed to value."""

_HEADER = ("metric", "mean", "std", "min ... max", "seeds", "paper (7B, real data)")
_SAME = ("stage", "dataset", "gate_mode", "layout", "given", "context", "conditioner", "steps", "guidance")
_PAIRS = (
    ("eval_cc3m", "eval_cc3m_decoder"),
    ("eval_context", "eval_context_blank"),
    ("eval_context", "eval_context_gate_off"),
)
"""Evaluations of the same samples that are also compared picture by picture."""


def find_results(root: Path) -> dict[str, dict[int, Path]]:
    """The evaluations under a folder.

    Args:
        root: Holds ``seed_<n>`` folders.

    Returns:
        Name to seed to folder, both sorted.

    Raises:
        UserError: If there are none.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(root.glob(f"seed_*/**/{RESULTS}"), key=lambda path: natural(path.as_posix())):
        top, *rest = path.parent.relative_to(root).parts
        if not (seed := re.fullmatch(r"seed_(\d+)", top)):
            continue
        parts = [part for part in rest if not re.fullmatch(r"version_\d+", part)]
        name = "/".join(parts) or str(read_results(path)[1].get("dataset") or "evaluation")
        found.setdefault(name, {})[int(seed[1])] = path.parent
    if not found:
        raise UserError(f"no seed_<n>/**/{RESULTS} under {str(root)!r}: `make seeds` writes them")
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def collect(name: str, folders: Mapping[int, Path]) -> tuple[Values, dict[str, Any]]:
    """What the seeds of one evaluation measured.

    Args:
        name: Of the evaluation, for errors.
        folders: Seed to folder.

    Returns:
        The values, undefined ones left out, and the protocol that all seeds share.

    Raises:
        UserError: If the seeds were not evaluated alike: their mean would mean nothing.
    """
    values: Values = {}
    shared: dict[str, Any] = {}
    for seed, folder in folders.items():
        metrics, protocol = read_results(folder / RESULTS)
        for metric, item in metrics.items():
            if math.isfinite(item.value):
                values.setdefault(metric, {})[seed] = item.value
        own = {key: protocol[key] for key in _SAME if protocol.get(key) is not None}
        shared = shared or own
        if own != shared:
            key = next(key for key in _SAME if own.get(key) != shared.get(key))
            raise UserError(
                f"{name}: {key} is {own.get(key)!r} in {folder} and {shared.get(key)!r} in another seed; "
                "remove the runs that do not belong together"
            )
    return values, shared


def compared(first: Mapping[int, Path], second: Mapping[int, Path]) -> Values:
    """Two evaluations of the same samples, picture by picture, for each seed that has both."""
    values: Values = {}
    for seed in first.keys() & second.keys():
        if (first[seed] / PREDICTIONS).is_file() and (second[seed] / PREDICTIONS).is_file():
            for metric, item in compare(first[seed], second[seed]).items():
                values.setdefault(metric, {})[seed] = item.value
    return values


def table(values: Values, dataset: str = "") -> str:
    """Mean, standard deviation (n - 1) and range of each metric, a markdown table."""
    paper = paper_values(dataset)
    rows = [_HEADER]
    for metric, by_seed in values.items():
        found = [by_seed[seed] for seed in sorted(by_seed)]
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
        theirs = paper.get("fid" if metric == "fid_micro" else metric)
        rows.append(
            (
                metric,
                f"{statistics.fmean(found):.2f}",
                spread,
                f"{min(found):.2f} ... {max(found):.2f}",
                " ".join(map(str, sorted(by_seed))),
                "" if theirs is None else f"paper: {theirs:.2f}",
            )
        )
    return aligned(rows)


def tables(root: Path) -> str:
    """All tables as markdown; the same results always give the same text."""
    found = find_results(root)
    lines = ["Written from the runs of `make seeds` by `python -m m2chat.evaluation.tables`; edit nothing here.", NOTE]
    for name, folders in found.items():
        values, protocol = collect(name, folders)
        facts = ", ".join(f"{key} {value}" for key, value in protocol.items())
        lines += ["", f"### {name}", "", facts, "", table(values, str(protocol.get("dataset", "")))]
    for a, b in _PAIRS:
        if a in found and b in found and (values := compared(found[a], found[b])):
            what = f"`{a}` (a) and `{b}` (b), judged picture by picture; shares in percent, differences in points."
            lines += ["", f"### {a} against {b}", "", what, "", table(values)]
    return "\n".join(lines) + "\n"


def write_section(path: Path, text: str, name: str = "seeds") -> None:
    """Puts the text between the marks of a section in a file, behind what is there if it has none yet.

    Args:
        path: Markdown file; the rest of it stays.
        text: Of the section.
        name: Of the section.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{start}\n{text}{end}\n"
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Results\n"
    before, begin, rest = old.partition(start)
    after = rest.partition(f"{end}\n")[2] if begin else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((before if begin else f"{old}\n") + section + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description="Writes mean and spread of evaluations over seeds.")
    parser.add_argument("root", type=Path, help="folder that holds seed_<n> folders")
    parser.add_argument("out", type=Path, help="markdown file to write them into, such as docs/results.md")
    options = parser.parse_args(argv)
    path = options.out.with_suffix(".md")
    write_section(path, tables(options.root))
    print(f"Tables: {path}")


if __name__ == "__main__":
    main()
