"""Is a difference between two evaluations of the same samples more than luck? Paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.evaluation.results import read_predictions
from m2chat.evaluation.scores import sample_scores
from m2chat.evaluation.statistics import RESAMPLES
from m2chat.metrics.text_overlap import bleu


@dataclass(frozen=True)
class Difference:
    """One metric in two evaluations, over the samples that both have.

    Args:
        metric: Which.
        first: Its value in the first.
        second: In the second.
        low: Lower end of the 95 % interval of ``first - second``.
        high: Upper end.
        p: Two-sided: how often luck alone would bring such a difference.
        n: Samples.
    """

    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())


def difference(
    metric: str,
    first: NDArray[Any],
    second: NDArray[Any],
    statistic: Callable[[NDArray[Any]], float] = _mean,
    seed: int = 0,
) -> Difference:
    """The paired bootstrap: both evaluations are resampled by the same samples.

    Args:
        metric: Its name.
        first: A row a sample, (n, ...).
        second: The same samples in the same order.
        statistic: From rows to the metric's value.
        seed: Of the resampling.
    """
    n = len(first)
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(n, size=n) for _ in range(RESAMPLES)]
    draws = np.array([statistic(first[rows]) - statistic(second[rows]) for rows in chosen])
    low, high = np.quantile(draws, (0.025, 0.975))
    # Both tails with one added, so that no finite number of draws claims certainty.
    p = min(1.0, 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (RESAMPLES + 1))
    return Difference(metric, statistic(first), statistic(second), float(low), float(high), float(p), n)


def differences(first: Path, second: Path) -> list[Difference]:
    """Every metric that has values for single samples, over the samples that both evaluations have.

    BLEU is over the corpus: the counts are resampled, not scores of sentences.

    Args:
        first: Folder with ``predictions.jsonl``.
        second: Another, of the same samples.

    Raises:
        UserError: If they share none.
    """
    a, b = ({row["id"]: row for row in read_predictions(folder)} for folder in (first, second))
    both = [id_ for id_ in a if id_ in b]
    if not both:
        raise UserError(f"{first} and {second} hold no predictions of the same samples")
    scores = [(sample_scores(a[id_]), sample_scores(b[id_])) for id_ in both]
    found = []
    counted = [id_ for id_ in both if all(side[id_]["scores"].get("bleu_statistics") for side in (a, b))]
    if len(counted) > 1:
        counts = [np.array([side[id_]["scores"]["bleu_statistics"] for id_ in counted]) for side in (a, b)]
        found += [difference(f"bleu_{order}", counts[0], counts[1], partial(bleu, order=order)) for order in (1, 2)]
    names = dict.fromkeys(name for own, _ in scores for name in own if not name.startswith("bleu_"))
    for name in names:
        pairs = np.array([(x[name], y[name]) for x, y in scores if name in x and name in y])
        if len(pairs) > 1:
            found.append(difference(name, pairs[:, 0], pairs[:, 1]))
    return found
