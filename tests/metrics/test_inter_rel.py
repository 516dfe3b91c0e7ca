from __future__ import annotations

import numpy as np
import pytest

from m2chat.errors import UserError
from m2chat.metrics.inter_rel import Elements, InterRelOptions, Modality, Relevance, inter_rel, mm_relevance

X, Y, Z = np.eye(3)


def elements(*parts: tuple[Modality, np.ndarray]) -> Elements:
    rows = np.stack([row for _, row in parts]) if parts else np.zeros((0, 0))
    return Elements([modality for modality, _ in parts], rows)


def test_vectors_that_give_no_cosines_are_refused() -> None:
    with pytest.raises(UserError, match="modalities: 'X' is none"):
        Elements("TX", np.stack([X, Y]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"1 of 2 vectors are not of unit length, the first has 2"):
        elements(("T", X), ("V", 2 * Y))
    with pytest.raises(UserError, match="1 modalities and 2 embeddings"):
        Elements(["T"], np.stack([X, Y]))
    half = (np.ones(3) / np.sqrt(3)).astype(np.float16)
    assert mm_relevance(elements(("T", half)), elements(("T", half))).f1 == pytest.approx(100, abs=0.1)


def test_one_text_and_one_picture_is_the_mean_of_both_directions() -> None:
    value = inter_rel(elements(("T", X), ("V", Y)), elements(("T", (X + Y) / np.sqrt(2)), ("V", X)))
    # cos(t, v~) = 1, cos(v, t~) = sqrt(1/2)
    assert value.mean == pytest.approx(100 * (1 + np.sqrt(0.5)) / 2)
    assert value.total == pytest.approx(100 * (1 + np.sqrt(0.5)))
    assert value.slots == 2


def test_a_picture_that_was_not_drawn_counts_zero() -> None:
    value = inter_rel(elements(("T", X), ("V", X)), elements(("T", X)))
    assert value.mean == pytest.approx(50.0)


def test_a_picture_that_nobody_asked_for_is_held_against_the_text() -> None:
    value = inter_rel(elements(("T", X)), elements(("T", X), ("V", Y)))
    assert value.mean == pytest.approx(0.0)
    assert value.slots == 1


def test_neighbours_count_where_they_exist() -> None:
    # T0 meets V~0 and V~1; V0 and V1 each meet T~0 or lack it; V1 has an expected text only at place 0.
    value = inter_rel(elements(("T", X), ("V", X), ("V", Y)), elements(("T", Y), ("V", X), ("V", X)))
    # T->V: 1 + 1 in two slots. V->T: V0.T~0 = 0 in one slot; V1 has neither T~1 nor a true T1.
    assert (value.total, value.slots) == (pytest.approx(200.0), 3)


def test_text_alone_is_undefined() -> None:
    assert inter_rel(elements(("T", X)), elements(("T", X))).mean is None
    assert inter_rel(elements(), elements()).mean is None


def test_the_true_reply_is_its_own_ceiling() -> None:
    reference = elements(("T", X), ("V", (X + Z) / np.sqrt(2)))
    assert inter_rel(reference, reference).mean == pytest.approx(100 * np.sqrt(0.5))


def test_mm_relevance_compares_place_by_place() -> None:
    reference = elements(("T", X), ("V", Y))
    assert mm_relevance(reference, reference) == Relevance(100.0, 100.0, 100.0)
    # One of two places is right, one element is missing: P = 1, R = 1/2.
    half = mm_relevance(reference, elements(("T", X)))
    assert half is not None
    assert (half.precision, half.recall, half.f1) == pytest.approx((100.0, 50.0, 200 / 3))
    # One element too many: P = 2/3, R = 1.
    more = mm_relevance(reference, elements(("T", X), ("V", Y), ("V", Z)))
    assert more is not None
    assert (more.precision, more.recall, more.f1) == pytest.approx((200 / 3, 100.0, 80.0))
    assert mm_relevance(reference, elements()) == Relevance(0.0, 0.0, 0.0)
    assert mm_relevance(elements(), elements()) is None
    assert mm_relevance(elements(), reference) is None  # there is nothing to be relevant to


ONE = elements(("T", X), ("V", Y))
SLANT = (X + Y) / np.sqrt(2)


@pytest.mark.parametrize(
    ("options", "generated", "value", "slots"),
    [
        # t.v~ = 1 and v.t~ = sqrt(1/2)
        (InterRelOptions(directions="tv"), (("T", SLANT), ("V", X)), 100.0, 1),
        (InterRelOptions(directions="vt"), (("T", SLANT), ("V", X)), 100 * np.sqrt(0.5), 1),
        # A missing picture: half of the slots, or none.
        (InterRelOptions(missing="skip"), (("T", SLANT),), 100 * np.sqrt(0.5), 1),
        (InterRelOptions(missing="zero"), (("T", SLANT),), 100 * np.sqrt(0.5), 2),
        # A second picture is a neighbour of the text, or nobody's.
        (InterRelOptions(), (("T", X), ("V", X), ("V", SLANT)), 100 * (1 + np.sqrt(0.5) + 0), 3),
        (InterRelOptions(neighbor=False), (("T", X), ("V", X), ("V", SLANT)), 100.0, 2),
        # All elements counted together: text 0 is held against places 0 and 1, picture 1 against 1 and 2.
        (InterRelOptions(index="flat"), (("T", SLANT), ("V", X)), 100.0, 1),
        (InterRelOptions(index="flat"), (("T", SLANT),), 0.0, 1),
        (InterRelOptions(index="flat", missing="skip"), (("T", SLANT),), 0.0, 0),
        (InterRelOptions(index="flat"), (("V", X), ("T", Y)), 200.0, 3),
        (InterRelOptions(index="flat", neighbor=False), (("V", X), ("T", Y)), 200.0, 2),
    ],
)
def test_other_readings_by_hand(
    options: InterRelOptions, generated: tuple[tuple[Modality, np.ndarray], ...], value: float, slots: int
) -> None:
    found = inter_rel(ONE, elements(*generated), options)
    assert (found.total, found.slots) == (pytest.approx(value), slots)


def test_the_sum_is_eq_8_to_the_letter() -> None:
    found = inter_rel(ONE, elements(("T", SLANT), ("V", X)))
    assert found.reduced("sum") == pytest.approx(100 * (1 + np.sqrt(0.5)))
    assert found.reduced("mean") == pytest.approx(50 * (1 + np.sqrt(0.5)))
    assert inter_rel(elements(("T", X)), elements(("T", X))).reduced("sum") is None
