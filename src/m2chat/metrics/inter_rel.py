"""How well the texts and pictures of a reply belong together: InterRel (Eq. 8) and MM-Relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Modality = Literal["T", "V"]


@dataclass(frozen=True)
class Elements:
    """The embedded texts and pictures of a reply, in the order in which they stand.

    Args:
        modalities: ``T`` or ``V`` of each, K of them.
        embeddings: Unit vectors, (K, D).
    """

    modalities: Sequence[Modality]
    embeddings: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.modalities)

    def of(self, modality: Modality) -> list[NDArray[np.float64]]:
        """The embeddings of one modality, each (D,) in fp64."""
        rows = zip(self.modalities, self.embeddings, strict=True)
        return [row.astype(np.float64) for own, row in rows if own == modality]


@dataclass(frozen=True)
class InterRelValue:
    """InterRel of one reply.

    Args:
        total: The sum of Eq. 8 over both directions, times 100.
        slots: Number of pairs that the true reply calls for, or that exist.
    """

    total: float
    slots: int

    @property
    def mean(self) -> float | None:
        """100 times the mean cosine, in [-100, 100]; None if no text meets a picture."""
        return self.total / self.slots if self.slots else None


def inter_rel(reference: Elements, generated: Elements) -> InterRelValue:
    """InterRel: true texts against generated pictures, and true pictures against generated texts.

    Element i of one modality meets elements i and i+1 of the other. Eq. 8 sums without end; only a mean fits the
    range of the paper's Table 2. A generated element that the true reply has and the generated one lacks counts
    0, so a model that never draws is not rewarded.

    Args:
        reference: The true reply.
        generated: The model's.
    """
    total, slots = 0.0, 0
    pairs: tuple[tuple[Modality, Modality], ...] = (("T", "V"), ("V", "T"))
    for first, second in pairs:
        wanted, given, expected = reference.of(first), generated.of(second), len(reference.of(second))
        for i, embedding in enumerate(wanted):
            slots += i < max(len(given), expected)
            slots += i + 1 < len(given)
            total += sum(float(embedding @ other) for other in given[i : i + 2])
    return InterRelValue(100.0 * total, slots)


def mm_relevance(reference: Elements, generated: Elements) -> float | None:
    """MM-Relevance F1: elements compared place by place, across modalities too.

    Args:
        reference: The true reply.
        generated: The model's.

    Returns:
        Value in [-100, 100]; None if both are empty.
    """
    count = len(reference) + len(generated)
    if not count:
        return None
    pairs = zip(reference.embeddings.astype(np.float64), generated.embeddings.astype(np.float64), strict=False)
    return 200.0 * sum(float(a @ b) for a, b in pairs) / count
