"""Figures of the chaos runs: what was tried, what went wrong, the worst that was measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from m2chat.evaluation.markup import write_section
from m2chat.files import locked, write_whole

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
JSON = ROOT / "docs" / "reliability.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
_EXAMPLES = 5


@dataclass
class Figures:
    """Outcome of tries of one kind.

    Args:
        tried: Number of tries.
        wrong: What went wrong, one text a try.
        worst: Largest values that were measured, by what they are.
    """

    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)

    def note(self, **values: float) -> None:
        """Keeps the largest value of each name; underscores stand for spaces."""
        for name, value in values.items():
            name = name.replace("_", " ")
            self.worst[name] = max(value, self.worst.get(name, value))


@dataclass(frozen=True)
class Kind:
    """A kind of failure.

    Args:
        title: Row of the table.
        wrong: What would be wrong, in the plural.
        count: Tries of a full run.
        quick: Tries of a quick one; 0 where tests of their own are the quick run.
        run: Runs a number of tries in a folder, with a seed.
    """

    title: str
    wrong: str
    count: int
    quick: int
    run: Callable[[int, Path, int], Figures]


def module_of(path: str) -> ModuleType:
    """A module of the tests, for what it has to share."""
    name = "chaos_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def by_tests(*selection: str) -> Callable[[int, Path, int], Figures]:
    """A kind whose tries are tests that stand elsewhere; all of them are run, whatever the count."""

    def run(count: int, folder: Path, seed: int) -> Figures:
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run([*command, *selection], cwd=ROOT, capture_output=True, text=True, check=False)
        import xml.etree.ElementTree as ET

        cases = list(ET.parse(report).getroot().iter("testcase"))
        cases = [case for case in cases if case.find("skipped") is None]
        bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        wrong = [f"{case.get('classname')}.{case.get('name')}" for case in bad]
        return Figures(len(cases), wrong if wrong or not done.returncode else [done.stdout[-300:]])

    return run


def recorded() -> dict[str, dict[str, Any]]:
    """What earlier runs have left, by kind."""
    return json.loads(JSON.read_text(encoding="utf-8")) if JSON.is_file() else {}


def forget(names: Iterable[str]) -> None:
    """Forgets the figures of some kinds."""
    with locked(JSON):
        _write({name: row for name, row in recorded().items() if name not in set(names)})


def record(name: str, found: Figures) -> dict[str, Any]:
    """Adds figures to those of earlier runs, and writes them; several processes may do so at once."""
    with locked(JSON):
        every = recorded()
        before = every.get(name, {"tried": 0, "wrong": 0, "examples": [], "worst": {}})
        worst = Figures(worst=dict(before["worst"]))
        worst.note(**found.worst)
        every[name] = {
            "tried": before["tried"] + found.tried,
            "wrong": before["wrong"] + len(found.wrong),
            "examples": [*before["examples"], *found.wrong][:_EXAMPLES],
            "worst": worst.worst,
        }
        _write(every)
    return every[name]


def _write(every: dict[str, Any]) -> None:
    write_whole(JSON, [json.dumps(dict(sorted(every.items())), indent=1, ensure_ascii=False), "\n"])


def table(kinds: dict[str, Kind]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| what is done | tries | what must not happen | happened | worst |", "|---|--:|---|--:|---|"]
    found = recorded()
    for name, kind in kinds.items():
        if name in found:
            row = found[name]
            worst = "; ".join(f"{what}: {value:.3g}" for what, value in row["worst"].items())
            lines.append(f"| {kind.title} | {row['tried']:,} | {kind.wrong} | {row['wrong']} | {worst} |")
        else:
            lines.append(f"| {kind.title} | not yet run | {kind.wrong} | | |")
    return "\n".join(lines) + "\n"


def write_table(kinds: dict[str, Kind]) -> None:
    """Writes the table into the document."""
    write_section(DOCUMENT, table(kinds), "figures")
