"""How well the texts and pictures of a reply belong together: InterRel (Eq. 8) and MM-Relevance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def rows(self) -> list[NDArray[np.float64]]:
        """The embeddings, each (D,) in fp64."""
        return [row.astype(np.float64) for row in self.embeddings]

    def of(self, modality: Modality) -> list[NDArray[np.float64]]:
        """The embeddings of one modality, each (D,) in fp64."""
        return [row for own, row in zip(self.modalities, self.rows(), strict=True) if own == modality]

    @property
    def finite(self) -> bool:
        """Whether every embedding is."""
        return bool(np.isfinite(self.embeddings).all())


@dataclass(frozen=True)
class InterRelOptions:
    """How Eq. 8 is read; the paper leaves it open.

    Args:
        directions: Which terms: ``tv`` holds true texts against generated pictures, ``vt`` true pictures against
            generated texts, ``both`` takes both.
        neighbor: Whether element i also meets element i + 1.
        reduction: ``mean`` over the pairs, or ``sum``, which is Eq. 8 to the letter.
        missing: A pair that the true reply calls for and the generated one lacks counts 0 (``zero``), or is left out
            (``skip``).
        index: What i counts: the elements of one ``modality``, or all elements of a reply (``flat``), of which only
            pairs of different modality count.
        text_source: Which text of a reply is its text element: its ``answer``, or the ``caption`` of its picture.
    """

    directions: Literal["both", "tv", "vt"] = "both"
    neighbor: bool = True
    reduction: Literal["mean", "sum"] = "mean"
    missing: Literal["zero", "skip"] = "zero"
    index: Literal["modality", "flat"] = "modality"
    text_source: Literal["answer", "caption"] = "answer"

    @property
    def first(self) -> tuple[Modality, ...]:
        """Modalities of the true elements that are compared."""
        return {"both": ("T", "V"), "tv": ("T",), "vt": ("V",)}[self.directions]  # type: ignore[return-value]


@dataclass(frozen=True)
class InterRelValue:
    """InterRel of one reply.

    Args:
        total: The sum of Eq. 8, times 100.
        slots: Number of pairs that the true reply calls for, or that exist.
    """

    total: float
    slots: int

    @property
    def mean(self) -> float | None:
        """100 times the mean cosine, in [-100, 100]; None if no text meets a picture."""
        return self.total / self.slots if self.slots else None

    def reduced(self, reduction: Literal["mean", "sum"]) -> float | None:
        """The mean or the sum; None if no text meets a picture."""
        return self.mean if reduction == "mean" else self.total if self.slots else None


def inter_rel(reference: Elements, generated: Elements, options: InterRelOptions = InterRelOptions()) -> InterRelValue:
    """InterRel (Eq. 8): true texts against generated pictures, and true pictures against generated texts.

    Element i of one modality meets elements i and i+1 of the other. Eq. 8 sums without end; only a mean fits the
    range of the paper's Table 2. A generated element that the true reply has and the generated one lacks counts
    0, so a model that never draws is not rewarded.

    Args:
        reference: The true reply.
        generated: The model's.
        options: Another reading.
    """
    pairs = _by_modality if options.index == "modality" else _by_place
    found = list(pairs(reference, generated, options))
    values = [value for value in found if value is not None]
    slots = len(found) if options.missing == "zero" else len(values)
    return InterRelValue(100.0 * sum(values), slots)


def _by_modality(reference: Elements, generated: Elements, options: InterRelOptions) -> Iterator[float | None]:
    """Cosine of each pair, the elements of each modality counted by themselves; None for one that is lacking."""
    for first in options.first:
        second: Modality = "V" if first == "T" else "T"
        given, expected = generated.of(second), len(reference.of(second))
        for i, embedding in enumerate(reference.of(first)):
            if i < max(len(given), expected):
                yield float(embedding @ given[i]) if i < len(given) else None
            if options.neighbor and i + 1 < len(given):
                yield float(embedding @ given[i + 1])


def _by_place(reference: Elements, generated: Elements, options: InterRelOptions) -> Iterator[float | None]:
    """The same, all elements of a reply counted together; None where the true reply meets itself and this one not."""
    rows = generated.rows()
    for i, (first, embedding) in enumerate(zip(reference.modalities, reference.rows(), strict=True)):
        for j in range(i, i + 1 + options.neighbor):
            if first not in options.first:
                continue
            if j < len(generated) and generated.modalities[j] != first:
                yield float(embedding @ rows[j])
            elif j < len(reference) and reference.modalities[j] != first:
                yield None


@dataclass(frozen=True)
class Relevance:
    """MM-Relevance of one reply, each in [-100, 100].

    Args:
        precision: Over the generated elements; 0 if there are none.
        recall: Over the true ones; 0 if there are none.
        f1: Their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def mm_relevance(reference: Elements, generated: Elements) -> Relevance | None:
    """MM-Relevance: elements compared place by place, across modalities too.

    Args:
        reference: The true reply.
        generated: The model's.

    Returns:
        The values; None if both are empty.
    """
    count = len(reference) + len(generated)
    if not count:
        return None
    total = 100.0 * sum(float(a @ b) for a, b in zip(reference.rows(), generated.rows(), strict=False))
    # The closed form of 2PR / (P + R), which has no 0 / 0.
    return Relevance(total / max(1, len(generated)), total / max(1, len(reference)), 2.0 * total / count)
