"""Every ratio of `docs/performance.md`: runs the benchmarks one after another, and writes one list and one table.

To run again, from the folder of the project (a quarter of an hour of one core; `make bench` does the same):

    OMP_NUM_THREADS=1 python benchmarks/bench.py [features] [generate] [stage2] [loader] [stream] [fid_trace] [train]
    python benchmarks/bench.py table             # only the list and the table, from what was measured before

Each benchmark runs alone as well, in its own process, and writes its own file in ``benchmarks/results``, with equality
asserted first; here it takes at most five rounds. ``train`` is left out unless it is named: it measures `make train` of
this checkout, half an hour of one core; for another checkout beside it see ``benchmarks/train.py``. The list is
``benchmarks/results/bench.json``, the table stands in ``docs/performance.md``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timing import chosen_parts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
ROUNDS = 5

COMMANDS: dict[str, tuple[str, ...]] = {
    "features": ("step", "shipped", "run", "memory"),
    "generate": ("image", "text", "reply", "fast"),
    "stage2": (),
    "loader": (),
    "stream": (),
    "fid_trace": ("equal",),
    "train": (".",),
}
"""Scripts and their arguments."""
LEFT_OUT = ("train",)


@dataclass(frozen=True)
class Goal:
    """What a ratio is called, and what it should be.

    Args:
        name: Name in the table.
        must: Least value; a share of the limit if `of_limit`.
        aim: Value aimed at.
        of_limit: Whether both are shares of the limit.
        at_most: Whether `must` is the greatest value instead.
        on_the_clock: Whether the bound is one of elapsed time, as where a network is waited for; else of CPU time.
    """

    name: str
    must: float | None = None
    aim: float | None = None
    of_limit: bool = False
    at_most: bool = False
    on_the_clock: bool = False

    def text(self, value: float | None) -> str:
        """A bound as the table shows it."""
        if value is None:
            return ""
        return f"{'≤' if self.at_most else '≥'} {value:g}{' × limit' if self.of_limit else ''}"


LOADER = {"pillow": 1.5, "simplejpeg": 2.0}
"""Decoders, and how many times as fast as equal work in webdataset the loader should be with each."""
GOALS: dict[str, Goal] = {
    "features/step": Goal("stage 1, cached ÷ uncached, every sample drawn", 0.8, 0.95, True),
    "features/shipped": Goal("stage 1, cached ÷ uncached, as shipped", 0.8, 0.95, True),
    "features/run": Goal("the same with the building of the cache, 4 epochs", 0.8, None, True),
    "generate/image/batch 1": Goal("a picture ÷ `StableDiffusionXLPipeline`, batch 1", 1.25, 1.4),
    "generate/image/batch 4": Goal("a picture ÷ `StableDiffusionXLPipeline`, batch 4", 1.25, 1.4),
    "generate/fast/batch 1": Goal("`fast` ÷ 30 steps of DDIM, batch 1", 2, 3),
    "generate/fast/batch 4": Goal("`fast` ÷ 30 steps of DDIM, batch 4", 2, 3),
    "generate/text/batch 1": Goal("text ÷ `generate`, batch 1", 1.4, 1.5),
    "generate/text/batch 4": Goal("text ÷ `generate`, batch 4", 1.3, 1.5),
    "generate/reply/batch 1": Goal("a reply with a picture ÷ generate, second pass, pipeline, batch 1", 1.3, 1.5),
    "generate/reply/batch 4": Goal("a reply with a picture ÷ generate, second pass, pipeline, batch 4", 1.3, 1.5),
    "stage2/bucketed/reading": Goal("stage 2, bucketed ÷ padded: language model, real lengths", 0.85, None, True),
    "stage2/bucketed/step": Goal("stage 2, bucketed ÷ padded: whole step", 0.85, None, True),
    "stage2/parts/reading": Goal("stage 2, read in 3 parts ÷ padded: language model"),
    "stage2/parts/step": Goal("stage 2, read in 3 parts ÷ padded: whole step"),
    "loader/step": Goal("step with loader ÷ resident batch", 1.05, None, at_most=True),
    "loader/step, one worker": Goal("the same with a reading process", 1.05, None, at_most=True),
    **{
        f"loader/webdataset/{size}, {decoder}{scaled}, {other}": Goal(
            f"loader ÷ webdataset as {other}, {size.replace('x', ' × ')}, {decoder}{scaled}", LOADER[decoder]
        )
        for size in ("480x640", "256x256", "768x1024")
        for decoder in LOADER
        for scaled in ("", ", scaled")
        for other in ("torchvision", "img2dataset")
    },
    "loader/tarfile": Goal("loader ÷ a tar read through for each sample"),
    "stream/ours: whole shards, theirs: one request a sample": Goal(
        "remote shards: `stream: sequential` ÷ one request a sample, 20 ms a request", 10, None, on_the_clock=True
    ),
}
"""Of the ratios that have a bound, or another name than their place in a file."""


def ratios(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The measured ratios in a file of results, with their places."""
    if isinstance(values.get("cpu"), Mapping) and "ratio" in values["cpu"]:
        yield path, values
        return
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ratios(value, f"{path}/{name}")


def row(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the list."""
    goal = GOALS.get(path, Goal(path))
    cpu, limit = values["cpu"], values.get("limit") or values.get("flop_limit") or values.get("formula")
    ratio = values["wall" if goal.on_the_clock else "cpu"]["ratio"]
    bound = None if goal.must is None else goal.must * (limit if goal.of_limit else 1)
    return {
        **asdict(goal),
        "name": goal.name,
        "path": path,
        "cpu": {"ratio": cpu["ratio"], "quartiles": cpu["quartiles"]},
        "wall": {name: values["wall"][name] for name in ("ratio", "quartiles")},
        "limit": limit,
        "reached": None if bound is None else bool(ratio <= bound if goal.at_most else ratio >= bound),
    }


def collected() -> list[dict[str, Any]]:
    """Every ratio that is on file, those with a bound first."""
    files = {name: RESULTS / f"{name}.json" for name in COMMANDS}
    found = {
        path: row(path, values)
        for name, file in files.items()
        if file.is_file()
        for path, values in ratios(json.loads(file.read_text()), name)
    }
    return [found[path] for path in GOALS if path in found] + [
        line for path, line in found.items() if path not in GOALS
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The list as a table in Markdown."""
    lines = [
        "| what | ratio, CPU time (quartiles) | on the clock | limit | must | aim |",
        "|---|---|---:|---:|---|---|",
    ]
    for line in rows:
        goal = Goal(**{name: line[name] for name in ("name", "must", "aim", "of_limit", "at_most", "on_the_clock")})
        low, high = line["cpu"]["quartiles"]
        must = goal.text(goal.must) + ("" if line["reached"] in (None, True) else ": **not reached**")
        limit = "" if line["limit"] is None else f"{line['limit']:.2f}"
        lines.append(
            f"| {goal.name} | {line['cpu']['ratio']:.2f} ({low:.2f}–{high:.2f}) | {line['wall']['ratio']:.2f} "
            f"| {limit} | {must} | {goal.text(goal.aim)} |"
        )
    return "\n".join(lines) + "\n"


def main(parts: list[str]) -> None:
    """Runs the benchmarks, and writes the list and the table.

    Raises:
        SystemExit: If one of them failed; the others' results are written all the same.
    """
    failed = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCH_ROUNDS": str(ROUNDS)}
    for part in parts:
        script = ROOT / "benchmarks" / f"{part}.py"
        if part == "table" or not script.is_file():
            continue
        begin = time.monotonic()
        done = subprocess.run([sys.executable, str(script), *COMMANDS[part]], cwd=ROOT, env=environment)
        print(f"{part}: {'failed' if done.returncode else 'done'} in {time.monotonic() - begin:.0f} s", flush=True)
        failed += [part] if done.returncode else []
    rows = collected()
    summary = {
        "how_to_re_run": "make bench",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "rows": rows,
    }
    (RESULTS / "bench.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.path.insert(0, str(ROOT / "src"))
    from m2chat.evaluation.markup import write_section

    write_section(DOCUMENT, table(rows), "bench")
    print(table(rows))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    all_parts = (*COMMANDS, "table")
    chosen = chosen_parts(__doc__, all_parts)
    main([part for part in chosen if part not in LEFT_OUT or len(chosen) < len(all_parts)])
