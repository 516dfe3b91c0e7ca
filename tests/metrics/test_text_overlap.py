from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from m2chat.metrics.text_overlap import bleu, bleu_signature, bleu_statistics, rouge_l

PAIRS = [
    ("look at this red circle", "then look at this !"),
    ("a warm ring", "a ring that is warm and red"),
    ("", "nothing was said"),
    ("sure , here it is .", "sure , here it is ."),
]


@pytest.mark.parametrize("order", [1, 2])
def test_summed_counts_give_sacrebleus_corpus_score(order: int) -> None:
    statistics = [bleu_statistics(*pair) for pair in PAIRS]
    hypotheses, references = zip(*PAIRS, strict=True)
    theirs = BLEU(max_ngram_order=order, tokenize="13a").corpus_score(list(hypotheses), [list(references)])
    assert bleu(statistics, order) == pytest.approx(theirs.score, abs=1e-9)
    assert 0 < theirs.score < 100


def test_bleu_by_hand() -> None:
    # "a b c" against "a b d": 2 of 3 words, 1 of 2 pairs, equal length.
    statistics = [bleu_statistics("a b c", "a b d")]
    assert statistics == [[2, 1, 3, 2, 3, 3]]
    assert bleu(statistics, 1) == pytest.approx(100 * 2 / 3)
    assert bleu(statistics, 2) == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))


def test_one_right_word_has_no_pairs() -> None:
    statistics = [bleu_statistics("yes", "yes")]
    assert bleu(statistics, 1) == pytest.approx(100.0)
    assert bleu(statistics, 2) == 0.0


def test_silence_scores_zero_and_no_pairs_score_nan() -> None:
    assert bleu([bleu_statistics("", "a b")], 1) == 0.0
    assert math.isnan(bleu(np.zeros((0, 6), np.int64), 1))


def test_the_signature_says_which_bleu() -> None:
    assert "tok:13a" in bleu_signature(2)
    assert "smooth:exp" in bleu_signature(2)


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a c": precision 2/2, recall 2/4.
    assert rouge_l("a c", "a b c d") == pytest.approx(100 * 2 * 1.0 * 0.5 / 1.5)
    assert rouge_l("", "a b") == 0.0
    assert rouge_l("a b", "a b") == pytest.approx(100.0)
