"""BLEU and ROUGE-L of generated answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.text_overlap import (
    BLEUMetric,
    ROUGELMetric,
    bleu_signature,
    bleu_statistics,
    rouge_l,
    tokenizer_of,
)
from m2chat.schema import Prediction


class TextOverlap(MetricCallback):
    """Logs ``bleu_1``, ``bleu_2`` (over the corpus) and ``rouge_l`` (a mean) of answers, without captions.

    A sample whose true reply says nothing is skipped; a generated reply that says nothing is an empty text. Where the
    true reply is not in Latin letters, ``predictions.jsonl`` states the ``text_tokenizer`` of the pair.
    """

    key = "text_overlap"
    in_validation = frozenset({"bleu_1", "bleu_2", "rouge_l"})

    def __init__(self) -> None:
        self.hold({"bleu_1": BLEUMetric(1), "bleu_2": BLEUMetric(2), "rouge_l": ROUGELMetric()})

    def protocol(self) -> dict[str, Any]:
        """Which BLEU and ROUGE."""
        signatures = {f"bleu_{order}": bleu_signature(order) for order in (1, 2)}
        return {"bleu_signature": signatures, "rouge_l": "rouge-score, F1, no stemmer"}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """An answer's counts and ROUGE-L."""
        reference, generated = (" ".join(reply.texts) for reply in (prediction.reference, prediction.generated))
        if not reference:
            return {"bleu_statistics": None, "rouge_l": None}
        tokenizer = tokenizer_of(reference)
        stated = {} if tokenizer == "latin" else {"text_tokenizer": tokenizer}
        counts = bleu_statistics(generated, reference)
        return {"bleu_statistics": counts, "rouge_l": rouge_l(generated, reference), **stated}

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the counts and ROUGE-L of a sample whose reference reply has words."""
        if values["bleu_statistics"] is not None:
            counts = values["bleu_statistics"]
            for name, value in (("bleu_1", counts), ("bleu_2", counts), ("rouge_l", values["rouge_l"])):
                self.metric(name).add([value], prediction.id, prediction.kind)
