"""BLEU and ROUGE-L of generated answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.metrics.text_overlap import bleu, bleu_signature, bleu_statistics, rouge_l
from m2chat.schema import Prediction


class TextOverlap(MetricCallback):
    """Logs ``bleu_1``, ``bleu_2`` (over the corpus) and ``rouge_l`` (a mean) of answers, without captions.

    A sample whose true reply says nothing is skipped; a generated reply that says nothing is an empty text.
    """

    key = "text_overlap"

    def protocol(self) -> dict[str, Any]:
        """Which BLEU and ROUGE."""
        signatures = {f"bleu_{order}": bleu_signature(order) for order in (1, 2)}
        return {"bleu_signature": signatures, "rouge_l": "rouge-score, F1, no stemmer"}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Each answer's counts and ROUGE-L."""
        rows: list[dict[str, Any]] = []
        for prediction in predictions:
            reference, generated = (" ".join(reply.texts) for reply in (prediction.reference, prediction.generated))
            if reference:
                counts = bleu_statistics(generated, reference)
                rows.append({"bleu_statistics": counts, "rouge_l": rouge_l(generated, reference)})
            else:
                rows.append({"bleu_statistics": None, "rouge_l": None})
        return rows

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """Corpus BLEU from summed counts, and the mean of ROUGE-L."""
        scored = [row.values for row in rows if row.values["bleu_statistics"] is not None]
        counts = np.array([values["bleu_statistics"] for values in scored], np.int64)
        results = {f"bleu_{order}": estimate(counts, partial(bleu, order=order)) for order in (1, 2)}
        results["rouge_l"] = estimate([values["rouge_l"] for values in scored])
        return results
