"""Scores of single samples, as ``predictions.jsonl`` holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from m2chat.metrics.text_overlap import bleu

RANKED = ("inter_rel", "edit_direction", "clip", "rouge_l", "clip_i")
"""By which score samples are called worst, median and best: the first that an evaluation has."""
SCALED = frozenset({"clip", "clip_i", "edit_direction", "edit_clip_i_source", "edit_text_score"})
"""Scores that are cosines, and stand in tables times 100."""
_LEFT_OUT = frozenset({"bleu_statistics", "attributes", "seen", "real", "generated", "frame_clip"})


def sample_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one prediction by name, as tables would show them.

    Args:
        row: Of ``predictions.jsonl``.

    Returns:
        Lists become their means, truth values percent; what is not defined is left out. BLEU is that of the sample's
        own counts.
    """
    found: dict[str, float] = {}
    for name, value in row.get("scores", {}).items():
        if name in _LEFT_OUT or name.endswith(("_not_finite", "_oracle")) or value is None or value == []:
            continue
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "bif":
            continue
        factor = 100.0 if name in SCALED or numbers.dtype.kind == "b" else 1.0
        found[name] = factor * float(numbers.mean())
    if counts := row.get("scores", {}).get("bleu_statistics"):
        found |= {f"bleu_{order}": bleu([counts], order) for order in (1, 2)}
    return {name: value for name, value in found.items() if math.isfinite(value)}
