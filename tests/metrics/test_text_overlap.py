from __future__ import annotations

import math

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from m2chat.evaluation.predictions import sample_scores
from m2chat.metrics.text_overlap import bleu, bleu_signature, bleu_statistics, rouge_l, tokenizer_of

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
    assert math.isnan(bleu(statistics, 2))  # no reference has a pair that could be right
    assert bleu([*statistics, bleu_statistics("no", "not now")], 2) == 0.0
    assert sample_scores({"scores": {"bleu_statistics": statistics[0]}}) == {"bleu_1": pytest.approx(100.0)}


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


SCRIPTS = {
    "zh": ("我喜欢这张红色的照片 OK", "我喜欢红色照片 OK !"),
    "13a": ("красный круг слева , да", "красный круг справа , нет"),
    "char": ("赤い円が左にある", "赤い円は右です"),
    "char ": ("วงกลมสีแดง", "วงกลมสีเขียว"),
    "char  ": ("😍😍👍", "😍👍"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_other_scripts_agree_with_the_reference_libraries(name: str) -> None:
    tokenizer, (generated, reference) = name.strip(), SCRIPTS[name]
    assert tokenizer_of(reference) == tokenizer
    for order in (1, 2):
        theirs = BLEU(max_ngram_order=order, tokenize=tokenizer).corpus_score([generated], [[reference]])
        assert bleu([bleu_statistics(generated, reference)], order) == pytest.approx(theirs.score, abs=1e-9)
        assert 0 < theirs.score < 100
    # rouge-score itself, of the same words written in its own letters.
    split = BLEU(tokenize=tokenizer).tokenizer
    words: dict[str, str] = {}
    spelled = [" ".join(words.setdefault(w, f"w{len(words)}") for w in split(t.lower()).split()) for t in SCRIPTS[name]]
    theirs = RougeScorer(["rougeL"]).score(spelled[1], spelled[0])["rougeL"].fmeasure
    assert rouge_l(generated, reference) == pytest.approx(100 * theirs) and 0 < theirs < 1
    assert rouge_l(reference, reference) == pytest.approx(100.0)


@pytest.mark.parametrize("text", ["a café , no ?", "the sign says 我 here", "it shrugs ¯\\_(ツ)_/¯ again", "", "7"])
def test_latin_texts_are_split_as_ever(text: str) -> None:
    assert tokenizer_of(text) == "latin"
    assert rouge_l("the sign", text) == pytest.approx(
        100 * RougeScorer(["rougeL"]).score(text, "the sign")["rougeL"].fmeasure
    )
