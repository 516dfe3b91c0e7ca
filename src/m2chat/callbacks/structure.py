"""Whether a reply has texts and pictures in the order of the reference reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.base import SampleMetric
from m2chat.schema import Prediction, Reply


class Structure(MetricCallback):
    """Logs ``structure``: share of replies, in percent, whose sequence of texts and pictures is the reference reply's.

    It is the structure score of ISG-Bench. Replies without a reference are in no share.
    """

    key = "structure"
    in_validation = frozenset({"structure"})

    def __init__(self) -> None:
        self.hold({"structure": SampleMetric()})

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Whether the sequences are equal; None without a reference."""
        expected = _sequence(prediction.reference, due=True)
        return {"structure": expected == _sequence(prediction.generated, due=False) if expected else None}

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds 0 or 100."""
        defined = [] if values["structure"] is None else [100.0 * values["structure"]]
        self.metric("structure").add(defined, prediction.id, prediction.kind)


def _sequence(reply: Reply, due: bool) -> str:
    """``T`` for each text and ``V`` for each picture, in their order.

    Args:
        reply: Reply.
        due: Whether a picture counts that the reply should have, and of which there is no file.
    """
    order = ""
    for segment, pixels in zip(reply.segments, reply.images, strict=True):
        order += "T" if segment.answer.strip() else ""
        order += "V" if pixels is not None or (due and segment.caption is not None) else ""
    return order
