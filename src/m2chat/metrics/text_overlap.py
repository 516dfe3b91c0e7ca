"""Overlap of generated and reference answers: BLEU-1, BLEU-2 and ROUGE-L, all 0-100.

Texts in Latin letters are split as the papers do: BLEU by sacrebleu's ``13a``, ROUGE-L by rouge-score, which knows
nothing but a-z and 0-9. Where the reference text is in another script, both measures split by the tokenisation of
sacrebleu that `tokenizer_of` names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2chat.metrics.base import SampleMetric

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

MAX_ORDER = 2
"""Longest n-gram that is counted."""


_LATIN = "latin"
_UNSPACED = ("HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts, as the names of their letters begin, that set no spaces between words."""
_NOT_OTHER = ("LATIN", "FULLWIDTH LATIN", "MODIFIER LETTER", "FEMININE ORDINAL", "MASCULINE ORDINAL")
_WORD = re.compile("[a-z0-9]")
"""What rouge-score takes for a part of a word."""


def tokenizer_of(reference: str) -> str:
    """How a pair of texts is split into words, by the script of the reference text.

    Another script counts from a quarter of the letters on: a sentence may quote a letter.

    Returns:
        ``latin``: each measure's usual way. ``zh``: Chinese characters one by one, the rest as ``13a``. ``char``: every
        character, for Japanese, Thai and others without spaces, and for texts without words, such as emoji. ``13a``:
        words and punctuation, for all other scripts.
    """
    if reference.isascii() and _WORD.search(reference.lower()):  # nearly all of them
        return _LATIN
    names = [unicodedata.name(letter, "") for letter in reference if letter.isalpha()]
    others = [name for name in names if not name.startswith(_NOT_OTHER)]
    if not others or 4 * len(others) < len(names):
        return _LATIN if _WORD.search(reference.lower()) or not reference.strip() else "char"
    if any(name.startswith(_UNSPACED) for name in others):
        return "char"
    return "zh" if any(name.startswith("CJK") for name in others) else "13a"


@cache
def _bleu(order: int, tokenizer: str = _LATIN) -> BLEU:
    from sacrebleu.metrics import BLEU

    tokenize = "13a" if tokenizer == _LATIN else tokenizer
    # effective_order belongs to sentence BLEU; here statistics are summed over the corpus first.
    return BLEU(max_ngram_order=order, tokenize=tokenize, smooth_method="exp", effective_order=False)


class _Words:
    """A tokenisation of sacrebleu, as rouge-score calls one."""

    def __init__(self, tokenizer: str) -> None:
        self._split = _bleu(MAX_ORDER, tokenizer).tokenizer

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in small letters, as rouge-score's own."""
        return str(self._split(text.lower())).split()


@cache
def _rouge(tokenizer: str = _LATIN) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    words = None if tokenizer == _LATIN else _Words(tokenizer)
    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=words)


def bleu_signature(order: int) -> str:
    """The signature that sacrebleu gives this BLEU."""
    bleu = _bleu(order)
    bleu.corpus_score([""], [[""]])  # the signature names the number of references only after a score
    return str(bleu.get_signature())


def bleu_statistics(hypothesis: str, reference: str) -> list[int]:
    """Counts that a pair adds to the BLEU of a corpus.

    Args:
        hypothesis: The generated text.
        reference: The reference text.

    Returns:
        Right 1-grams and 2-grams, all 1-grams and 2-grams, and both lengths: six counts.
    """
    score = _bleu(MAX_ORDER, tokenizer_of(reference)).corpus_score([hypothesis], [[reference]])
    return [*map(int, score.counts), *map(int, score.totals), int(score.sys_len), int(score.ref_len)]


def bleu(statistics: NDArray[np.integer] | Sequence[Sequence[int]], order: int) -> float:
    """Corpus BLEU of cumulative 1- to n-grams.

    Args:
        statistics: From `bleu_statistics`, (n, 6).
        order: n, 1 or 2.

    Returns:
        Score in [0, 100]; NaN without pairs, or if no reference text has n words: it has no n-gram to be right.
    """
    counts = np.asarray(statistics).reshape(-1, 2 * MAX_ORDER + 2)
    if not (counts[:, -1] >= order).any():
        return float("nan")
    sums = [int(value) for value in counts.sum(0)]
    right, total = sums[:MAX_ORDER], sums[MAX_ORDER : 2 * MAX_ORDER]
    score = type(_bleu(order)).compute_bleu(
        right[:order], total[:order], sums[-2], sums[-1], smooth_method="exp", max_ngram_order=order
    )
    return float(score.score)


def rouge_l(hypothesis: str, reference: str) -> float:
    """ROUGE-L F1 of a pair, in [0, 100]; 0 if a side is empty."""
    return 100.0 * float(_rouge(tokenizer_of(reference)).score(reference, hypothesis)["rougeL"].fmeasure)


class BLEUMetric(SampleMetric):
    """Corpus BLEU of cumulative 1- to n-grams, 0-100; values are the counts of `bleu_statistics`, (6,) a sample.

    Args:
        order: n, 1 or 2.
    """

    higher_is_better = True

    def __init__(self, order: int, **kwargs: Any) -> None:
        super().__init__(width=2 * MAX_ORDER + 2, statistic=partial(bleu, order=order), **kwargs)

    def update(self, hypotheses: Sequence[str], references: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """Adds generated texts with their references, and the ids of their samples."""
        self.add_samples([bleu_statistics(*pair) for pair in zip(hypotheses, references, strict=True)], ids)


class ROUGELMetric(SampleMetric):
    """Mean ROUGE-L F1, 0-100."""

    higher_is_better = True

    def update(self, hypotheses: Sequence[str], references: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """Adds generated texts with their references, and the ids of their samples."""
        self.add_samples([rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)], ids)
