"""What benchmarks share: their command line, and both sides in turn with the median of the rounds' ratios."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

ROUNDS, WARM_UPS = 7, 2


def chosen_parts(text: str, parts: Sequence[str]) -> list[str]:
    """Reads the command line of a benchmark; call it before the imports that take seconds.

    Args:
        text: Description of the benchmark, for ``--help``.
        parts: Names of the parts that can be chosen; none if it has only one.

    Returns:
        The chosen parts, all of them if none is named.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts:
        parser.add_argument("parts", nargs="*", help=f"any of: {', '.join(parts)} (default: all)")
    named: list[str] = getattr(parser.parse_args(), "parts", [])
    if unknown := [name for name in named if name not in parts]:
        parser.error(f"there is no part {', '.join(unknown)}; choose from {', '.join(parts)}")
    return named or list(parts)


def compare(ours: Callable[[], int], theirs: Callable[[], int], rounds: int = ROUNDS) -> dict[str, Any]:
    """How many times faster ours is.

    Args:
        ours: Does some work and says how many units it did; theirs may do another number of them.
        theirs: The same for the other side.
        rounds: Of both sides each, after two that do not count; ``BENCH_ROUNDS`` in the environment makes them fewer.

    Returns:
        For CPU and wall time: milliseconds a unit of both (medians), the median of the rounds' ratios
        ``theirs / ours``, and their quartiles.
    """
    # `make bench` has a quarter of an hour for all of them.
    rounds = min(rounds, int(os.environ.get("BENCH_ROUNDS", rounds)))
    found: dict[str, list[tuple[float, float]]] = {"cpu": [], "wall": []}
    for number in range(rounds + WARM_UPS):
        sides = []
        for work in (ours, theirs):
            cpu, wall = time.process_time(), time.perf_counter()
            units = work()
            sides.append(((time.process_time() - cpu) / units, (time.perf_counter() - wall) / units))
        if number >= WARM_UPS:
            found["cpu"].append((sides[0][0], sides[1][0]))
            found["wall"].append((sides[0][1], sides[1][1]))
    result: dict[str, Any] = {"rounds": rounds}
    for clock, pairs in found.items():
        ratios = [theirs / ours for ours, theirs in pairs]
        low, _, high = quantiles(ratios, n=4)
        result[clock] = {
            "ours_ms": round(1e3 * median(ours for ours, _ in pairs), 4),
            "theirs_ms": round(1e3 * median(theirs for _, theirs in pairs), 4),
            "ratio": round(median(ratios), 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    return result
