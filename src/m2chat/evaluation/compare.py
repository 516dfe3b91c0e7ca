"""Two evaluations of the same samples, side by side: ``python -m m2chat.evaluation.compare A B``.

A and B are folders that hold ``predictions.jsonl``. Pictures are judged again from their files, so nothing is
generated and nothing but the files is trusted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2chat.errors import UserError
from m2chat.evaluation.results import read_predictions
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.targets import known_of
from m2chat.world import Target, find_world


def judged_pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """Every picture of an evaluation that was both due and drawn.

    Args:
        folder: Holds ``predictions.jsonl`` and its pictures.

    Returns:
        ``"<prediction id>/<n>"`` to ``all_right`` (against the true caption) and ``omitted`` (truth values of the
        attributes that only the context picture shows).
    """
    from PIL import Image

    found = {}
    judge = find_world("shapes").judge
    for row in read_predictions(folder):
        due = [segment for segment in row["reference"] if segment["caption"] is not None]
        drawn = [segment["image"] for segment in row["generated"] if segment["image"]]
        known = known_of(row["meta"], len(due))
        for index, (segment, image) in enumerate(zip(due, drawn, strict=False)):
            attributes, omitted = known[index]
            picture = np.asarray(Image.open(folder / image).convert("RGB"))
            judged = judge([Target(segment["caption"], None, picture, attributes, omitted)])
            found[f"{row['id']}/{index}"] = {"all_right": judged.all_right[0], "omitted": judged.omitted_right}
    return found


def compare(first: Path, second: Path) -> dict[str, Estimate]:
    """Shares in percent, over the pictures that both evaluations hold.

    Returns:
        ``all_right_a`` and ``_b``; ``all_right_a_where_b``: share of A's right pictures among those that B gets
        right; ``omitted_a`` and ``_b`` and their paired ``omitted_difference`` in points, if anything was omitted.
    """
    a, b = judged_pictures(first), judged_pictures(second)
    both = sorted(a.keys() & b.keys())
    if not both:
        raise UserError(f"{first} and {second} hold no pictures of the same samples")
    right_a = np.array([a[name]["all_right"] for name in both], np.float64)
    right_b = np.array([b[name]["all_right"] for name in both], np.float64)
    found = {
        "all_right_a": estimate(100 * right_a),
        "all_right_b": estimate(100 * right_b),
        "all_right_a_where_b": estimate(100 * right_a[right_b == 1]),
    }
    omitted = [(np.mean(a[name]["omitted"]), np.mean(b[name]["omitted"])) for name in both if a[name]["omitted"]]
    if omitted:
        pairs = 100 * np.array(omitted, np.float64)
        found["omitted_a"], found["omitted_b"] = estimate(pairs[:, 0]), estimate(pairs[:, 1])
        found["omitted_difference"] = estimate(pairs[:, 0] - pairs[:, 1])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", type=Path, help="folder of an evaluation")
    parser.add_argument("b", type=Path, help="folder of another, on the same samples")
    arguments = parser.parse_args(argv)
    for name, value in compare(arguments.a, arguments.b).items():
        print(f"{name:22} {value.value:7.2f}  [{value.low:.2f}, {value.high:.2f}]  n={value.n}")


if __name__ == "__main__":
    main()
