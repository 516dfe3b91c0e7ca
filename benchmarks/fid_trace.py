"""The trace term of FID beside torch-fidelity's and torchmetrics', at Inception's 2,048 features.

To run again, from the folder of the project (some ten minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/fid_trace.py [equal] [ten] [hundred]

It writes ``benchmarks/results/fid_trace.json``. Each side gets the same means and covariances, in fp64, of 4,096
correlated vectors a side, and computes the whole distance. How long the general eigenvalue problem of the others takes
depends on how far the spreads of the directions lie apart; ours does not care.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timing import chosen_parts, compare

PARTS = ("equal", "ten", "hundred")
if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, PARTS)

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.metrics.fid import Moments, frechet_distance  # noqa: E402

WIDTH, COUNT, ROUNDS, TOLERANCE = 2048, 4096, 5, 1e-6
SPREADS = {"equal": 0.0, "1 to 10": 1.0, "1 to 100": 2.0}
"""Standard deviations of the directions, as powers of ten."""


def features(seed: int, shift: float, decades: float) -> np.ndarray:
    """Vectors with directions of different spreads, mixed."""
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -decades, WIDTH)
    mixing, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(WIDTH, WIDTH)))
    return np.asarray((rng.normal(size=(COUNT, WIDTH)) * scales) @ mixing + shift)


def once(work: Callable[[], float]) -> int:
    """Does it, and says that it was one unit of work."""
    work()
    return 1


def measure(decades: float) -> dict[str, Any]:
    """Asserts that all agree, then times each pair in turn."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    sides = [Moments.of(features(seed, 0.01 * seed, decades)) for seed in (0, 1)]
    assert all(side.features is None for side in sides)
    statistics = [{"mu": side.mean, "sigma": side.covariance} for side in sides]
    tensors = [torch.from_numpy(part) for side in sides for part in (side.mean, side.covariance)]

    def ours() -> float:
        return frechet_distance(*sides)

    others: dict[str, Callable[[], float]] = {
        "torch-fidelity": lambda: float(
            fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        ),
        "torchmetrics": lambda: float(_compute_fid(*tensors)),
    }
    value = ours()
    found = {}
    for name, theirs in others.items():
        difference = abs(theirs() - value) / value
        assert difference < TOLERANCE, f"{name} differs by {difference}"
        found[name] = {
            "relative_difference": difference,
            **compare(partial(once, ours), partial(once, theirs), ROUNDS),
        }
        print(decades, name, json.dumps(found[name]), flush=True)
    return found


def main(parts: list[str]) -> None:
    """Measures some spreads, and writes them down beside what was measured before."""
    path = ROOT / "benchmarks" / "results" / "fid_trace.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found |= {
        "how_to_re_run": "OMP_NUM_THREADS=1 python benchmarks/fid_trace.py",
        "protocol": f"{WIDTH} features, fp64, one thread, sides in turn, medians of {ROUNDS} rounds' ratios",
        "versions": {name: version(name) for name in ("numpy", "torch", "torch-fidelity", "torchmetrics")},
    }
    for part, (name, decades) in zip(PARTS, SPREADS.items(), strict=True):
        if part not in parts:
            continue
        found[f"spreads {name}"] = {"load_average": round(os.getloadavg()[0], 1), **measure(decades)}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(CHOSEN)
