"""Overlap of generated and reference answers: BLEU-1, BLEU-2 and ROUGE-L, all 0-100."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2chat.metrics.base import SampleMetric

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

MAX_ORDER = 2
"""Longest n-gram that is counted."""


@cache
def _bleu(order: int) -> BLEU:
    from sacrebleu.metrics import BLEU

    # effective_order belongs to sentence BLEU; here statistics are summed over the corpus first.
    return BLEU(max_ngram_order=order, tokenize="13a", smooth_method="exp", effective_order=False)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def bleu_signature(order: int) -> str:
    """The signature that sacrebleu gives this BLEU."""
    bleu = _bleu(order)
    bleu.corpus_score([""], [[""]])  # the signature names the number of references only after a score
    return str(bleu.get_signature())


def bleu_statistics(hypothesis: str, reference: str) -> list[int]:
    """Counts that a pair adds to the BLEU of a corpus.

    Args:
        hypothesis: The generated text.
        reference: The reference text.

    Returns:
        Right 1-grams and 2-grams, all 1-grams and 2-grams, and both lengths: six counts.
    """
    score = _bleu(MAX_ORDER).corpus_score([hypothesis], [[reference]])
    return [*map(int, score.counts), *map(int, score.totals), int(score.sys_len), int(score.ref_len)]


def bleu(statistics: NDArray[np.integer] | Sequence[Sequence[int]], order: int) -> float:
    """Corpus BLEU of cumulative 1- to n-grams.

    Args:
        statistics: From `bleu_statistics`, (n, 6).
        order: n, 1 or 2.

    Returns:
        Score in [0, 100]; NaN without pairs.
    """
    if len(statistics) == 0:
        return float("nan")
    sums = [int(value) for value in np.asarray(statistics).sum(0)]
    right, total = sums[:MAX_ORDER], sums[MAX_ORDER : 2 * MAX_ORDER]
    score = type(_bleu(order)).compute_bleu(
        right[:order], total[:order], sums[-2], sums[-1], smooth_method="exp", max_ngram_order=order
    )
    return float(score.score)


def rouge_l(hypothesis: str, reference: str) -> float:
    """ROUGE-L F1 of a pair, in [0, 100]; 0 if a side is empty."""
    return 100.0 * float(_rouge().score(reference, hypothesis)["rougeL"].fmeasure)


class BLEUMetric(SampleMetric):
    """Corpus BLEU of cumulative 1- to n-grams, 0-100; values are the counts of `bleu_statistics`, (6,) a sample.

    Args:
        order: n, 1 or 2.
    """

    higher_is_better = True

    def __init__(self, order: int, **kwargs: Any) -> None:
        super().__init__(width=2 * MAX_ORDER + 2, statistic=partial(bleu, order=order), **kwargs)

    def update(self, hypotheses: Sequence[str], references: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """Adds generated texts with their references, and the ids of their samples."""
        self.add_samples([bleu_statistics(*pair) for pair in zip(hypotheses, references, strict=True)], ids)


class ROUGELMetric(SampleMetric):
    """Mean ROUGE-L F1, 0-100."""

    higher_is_better = True

    def update(self, hypotheses: Sequence[str], references: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """Adds generated texts with their references, and the ids of their samples."""
        self.add_samples([rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)], ids)
