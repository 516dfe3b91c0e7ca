"""`m2chat measure`: how well a micro model converses, over held-out conversations, by the independent judge."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2chat.commands.common import add_model_options, load_pipeline
from m2chat.files import write_whole

MIX = {"instruct": 0.2, "dialogue": 0.25, "mixed": 0.2, "edit": 0.2, "story": 0.15}
"""Conversations, named by what makes them, and their shares."""
DECISION, SHARE = 95.0, 0.8
"""Least percentage of right decisions for or against a picture; least share of what the decoder alone gets right."""


@dataclass
class Findings:
    """Truth values by measure.

    Args:
        found: Measure to one truth value a case.
        bars: Measure to the percentage that it must reach.
    """

    found: dict[str, list[bool]] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)

    def add(self, measure: str, values: list[bool]) -> None:
        """Adds cases."""
        self.found.setdefault(measure, []).extend(values)

    def rate(self, measure: str) -> float:
        """Percentage of the true ones."""
        values = self.found[measure]
        return 100 * sum(values) / len(values)

    def rows(self) -> list[dict[str, Any]]:
        """Every measure with its interval and whether it holds."""
        from m2chat.evaluation.statistics import estimate

        rows = []
        for name, values in self.found.items():
            own, bar = estimate(values), self.bars.get(name)
            rows.append(
                {
                    "measure": name, "percent": round(100 * own.value, 1), "n": len(values),
                    "low": round(100 * own.low, 1), "high": round(100 * own.high, 1),
                    "bar": None if bar is None else round(bar, 1),
                    "holds": None if bar is None else 100 * own.value >= bar,
                }
            )  # fmt: skip
        return rows


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("measure", help="measure a micro model's conversations with the judge")
    parser.add_argument("--count", type=int, default=200, help="conversations (default: %(default)s)")
    parser.add_argument("--wishes", type=int, default=20, help="vague wishes, four seeds each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of conversations and pictures (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, metavar="N", help="replies at once (%(default)s)")
    parser.add_argument(
        "--captions", choices=("model", "data"), default="model",
        help="who says what a shown picture shows: the model, as in a chat, or the data (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON too")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measures, prints a table, writes the file."""
    from m2chat.commands.measurement import (
        Talks,
        measure_descriptions,
        measure_edits,
        measure_replies,
        measure_stories,
        measure_wishes,
    )
    from m2chat.evaluation.report import aligned

    talks = Talks(load_pipeline(options), options.seed, options.steps, options.batch_size, options.captions == "model")
    findings = Findings()
    samples = {kind: talks.make(kind, round(share * options.count)) for kind, share in MIX.items()}
    edits = measure_replies(talks, [sample for own in samples.values() for sample in own], findings)
    measure_edits(talks, samples["edit"], edits, findings)
    measure_descriptions(talks, samples["edit"], findings)
    measure_stories(talks, samples["story"], findings)
    measure_wishes(talks, options.wishes, findings)
    _set_bars(findings)
    rows = findings.rows()
    print(f"Weights: {talks.pipe.origin.path}; {options.count} held-out conversations; captions by {options.captions}")
    header = ("measure", "%", "95 % interval", "n", "must reach", "holds")
    lines = [
        (
            row["measure"], f"{row['percent']:.1f}", f"{row['low']:.1f} ... {row['high']:.1f}", str(row["n"]),
            "" if row["bar"] is None else f"{row['bar']:.1f}",
            "" if row["holds"] is None else ("yes" if row["holds"] else "NO"),
        )
        for row in rows
    ]  # fmt: skip
    print(aligned([header, *lines]))
    if options.out is not None:
        settings = {key: str(value) for key, value in vars(options).items() if key != "run"}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, [json.dumps({"settings": settings, "rows": rows}, indent=1), "\n"])


def _set_bars(findings: Findings) -> None:
    """What must hold: decisions by themselves, pictures against the image decoder alone."""
    for name in findings.found:
        if name.startswith("decision"):
            findings.bars[name] = DECISION
        elif name.startswith(("right:", "kept:")) and f"decoder {name}" in findings.found:
            findings.bars[name] = SHARE * findings.rate(f"decoder {name}")
        elif name.startswith("wishes:"):
            findings.bars[name] = 100.0
