"""How well the texts and pictures of a reply belong together: InterRel (Eq. 8) and MM-Relevance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.metrics.base import SampleMetric

Modality = Literal["T", "V"]
_TOLERANCE = 0.01
"""Difference from 1 up to which a length counts as 1."""


@dataclass(frozen=True)
class Elements:
    """The embedded texts and pictures of a reply, in the order in which they stand.

    Args:
        modalities: Modality of each element, ``T`` or ``V``, K of them.
        embeddings: Unit vectors, (K, D).

    Raises:
        UserError: If a modality is another, or the vectors are not as many, or not of unit length: their products
            would be no cosines.
    """

    modalities: Sequence[Modality]
    embeddings: NDArray[np.floating]

    def __post_init__(self) -> None:
        if strangers := [modality for modality in self.modalities if modality not in ("T", "V")]:
            raise UserError(f"modalities: {strangers[0]!r} is none; choose T (text) or V (picture) for each element")
        if len(self.modalities) != len(self.embeddings):
            raise UserError(
                f"{len(self.modalities)} modalities and {len(self.embeddings)} embeddings: give one for each"
            )
        lengths = np.linalg.norm(np.asarray(self.embeddings, np.float64), axis=-1)
        # Half precision keeps a unit vector's length to a thousandth; not finite ones are counted elsewhere.
        wrong = np.isfinite(lengths) & (np.abs(lengths - 1.0) > _TOLERANCE)
        if wrong.any():
            raise UserError(
                f"embeddings: {int(wrong.sum())} of {len(lengths)} vectors are not of unit length, the first has "
                f"{float(lengths[wrong][0]):.3g}: divide each by its length, so that their products are cosines"
            )

    def __len__(self) -> int:
        return len(self.modalities)

    def rows(self) -> list[NDArray[np.float64]]:
        """The embeddings, each (D,) in fp64."""
        return [row.astype(np.float64) for row in self.embeddings]

    def of(self, modality: Modality) -> list[NDArray[np.float64]]:
        """The embeddings of one modality, each (D,) in fp64."""
        return [row for each, row in zip(self.modalities, self.rows(), strict=True) if each == modality]

    @property
    def finite(self) -> bool:
        """Whether every embedding is finite."""
        return bool(np.isfinite(self.embeddings).all())


@dataclass(frozen=True)
class InterRelOptions:
    """Reading of Eq. 8, which the paper leaves open.

    Args:
        directions: Terms of the sum: ``tv`` compares reference texts with generated pictures, ``vt`` reference pictures
            with generated texts, ``both`` takes both.
        neighbor: Whether element i also meets element i + 1.
        reduction: ``mean`` over the pairs, or ``sum``, which is Eq. 8 to the letter.
        missing: A pair that the reference reply has and the generated one lacks counts 0 (``zero``), or is left out
            (``skip``).
        index: Meaning of i: the elements of one ``modality``, or all elements of a reply (``flat``), of which only
            pairs of different modality count.
        text_source: Text of a reply that is its text element: its ``answer``, or the ``caption`` of its picture.
    """

    directions: Literal["both", "tv", "vt"] = "both"
    neighbor: bool = True
    reduction: Literal["mean", "sum"] = "mean"
    missing: Literal["zero", "skip"] = "zero"
    index: Literal["modality", "flat"] = "modality"
    text_source: Literal["answer", "caption"] = "answer"

    @property
    def first(self) -> tuple[Modality, ...]:
        """Modalities of the reference elements that are compared."""
        return {"both": ("T", "V"), "tv": ("T",), "vt": ("V",)}[self.directions]  # type: ignore[return-value]


@dataclass(frozen=True)
class InterRelValue:
    """InterRel of one reply.

    Args:
        total: The sum of Eq. 8, times 100.
        slots: Number of pairs that the reference reply has, or that exist.
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
    """InterRel (Eq. 8): reference texts against generated pictures, reference pictures against generated texts.

    Element i of one modality meets elements i and i+1 of the other. Eq. 8 sums without end; only a mean fits the
    range of the paper's Table 2. An element that the reference reply has and the generated one lacks counts
    0, so a model that never draws is not rewarded.

    Args:
        reference: Elements of the reference reply.
        generated: Elements of the generated reply.
        options: Reading of Eq. 8.
    """
    pairs = _by_modality if options.index == "modality" else _by_place
    terms = list(pairs(reference, generated, options))
    values = [value for value in terms if value is not None]
    slots = len(terms) if options.missing == "zero" else len(values)
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
    """The same, the elements of a reply counted together; None for a pair that only the reference reply has."""
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
        recall: Over the reference ones.
        f1: Their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def mm_relevance(reference: Elements, generated: Elements) -> Relevance | None:
    """MM-Relevance: elements compared place by place, across modalities too.

    Args:
        reference: Elements of the reference reply.
        generated: Elements of the generated reply.

    Returns:
        The values; None if the reference reply is empty, so that there is nothing to be relevant to.
    """
    count = len(reference) + len(generated)
    if not len(reference):
        return None
    total = 100.0 * sum(float(a @ b) for a, b in zip(reference.rows(), generated.rows(), strict=False))
    # The closed form of 2PR / (P + R), which has no 0 / 0.
    return Relevance(total / max(1, len(generated)), total / len(reference), 2.0 * total / count)


class InterRelMetric(SampleMetric):
    """Mean InterRel (Eq. 8) over the replies for which it is defined, in [-100, 100].

    Args:
        options: Reading of Eq. 8.
    """

    higher_is_better = True

    def __init__(self, options: InterRelOptions = InterRelOptions(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options

    def update(
        self,
        reference_elements: Sequence[Elements],
        generated_elements: Sequence[Elements],
        ids: Sequence[str] | None = None,
    ) -> None:
        """Adds replies as embedded elements beside the reference ones, and the ids of their samples."""
        pairs = zip(reference_elements, generated_elements, strict=True)
        values = [inter_rel(*pair, self.options).reduced(self.options.reduction) for pair in pairs]
        self.add_samples([np.nan if value is None else value for value in values], ids)


class MMRelevanceMetric(SampleMetric):
    """Mean MM-Relevance, the F1 of `mm_relevance`, over the replies for which it is defined, in [-100, 100]."""

    higher_is_better = True

    def update(
        self,
        reference_elements: Sequence[Elements],
        generated_elements: Sequence[Elements],
        ids: Sequence[str] | None = None,
    ) -> None:
        """Adds replies as embedded elements beside the reference ones, and the ids of their samples."""
        values = [mm_relevance(*pair) for pair in zip(reference_elements, generated_elements, strict=True)]
        self.add_samples([np.nan if value is None else value.f1 for value in values], ids)
