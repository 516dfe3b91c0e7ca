"""Decoding with a stand-in for the language model that says whatever a random generator wants."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from m2chat.models.generation import Decoding, SpecialTokens, TokenSegment, decode_replies, finished, stream_replies
from m2chat.models.m2chat import M2ChatModel

WORDS, IC, IMG, EOS, PAD = 8, 8, 9, 2, 0
SPECIAL = SpecialTokens(IC, IMG, EOS, PAD)


class Babbler:
    """Logits at random: special tokens are likely, so that every corner of the grammar is met.

    Args:
        seed: Of what it says.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.heard: list[Tensor] = []
        self.clip = self.visual_query = lambda pixels: pixels

    def llama(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any) -> SimpleNamespace:
        self.heard.append(input_ids)
        assert attention_mask.shape[1] == sum(part.shape[1] for part in self.heard)
        assert torch.equal(position_ids[:, -1] + 1, attention_mask.sum(1))
        logits = torch.randn(len(input_ids), 1, WORDS + 2, generator=self.generator)
        logits[..., [EOS, IC, IMG]] += 0.7
        logits[..., [PAD, 1]] = -torch.inf
        return SimpleNamespace(logits=logits, cache=None)


def babble(seed: int, decoding: Decoding, rows: int = 3) -> tuple[list[list[TokenSegment]], list[list[int]]]:
    """Replies, and the tokens that the model was fed behind each prompt."""
    model = Babbler(seed)
    prompts = [[1, *[3] * row] for row in range(1, rows + 1)]
    replies = decode_replies(cast(M2ChatModel, model), prompts, torch.zeros(rows, 1), SPECIAL, decoding)
    fed = torch.cat(model.heard[1:], 1).tolist() if len(model.heard) > 1 else [[] for _ in range(rows)]
    return replies, [[token for token in row if token != PAD] for row in fed]


def laid_out(reply: list[TokenSegment], slots: int) -> list[int]:
    ids: list[int] = []
    for segment in reply:
        ids += segment.answer
        if segment.caption is not None:
            ids += [IC, *segment.caption, *[IMG] * slots]
    return ids


DECODING = Decoding(num_image_tokens=3, max_text_tokens=5, max_pictures=2)


@pytest.mark.parametrize("slots", [1, 3])
def test_free_replies_obey_the_grammar(slots: int) -> None:
    decoding = replace(DECODING, num_image_tokens=slots)
    pictures = set()
    for seed in range(60):
        replies, fed = babble(seed, decoding)
        for reply, tokens in zip(replies, fed, strict=True):
            _check(reply, tokens, decoding)
            pictures.add(sum(segment.caption is not None for segment in reply))
            # Text alone stands only at the end, and an empty segment only if it is all there is.
            assert all(segment.caption is not None for segment in reply[:-1])
            assert len(reply) == 1 or reply[-1].caption is not None or reply[-1].answer
    assert pictures == {0, 1, 2}


@pytest.mark.parametrize("slots", [1, 3])
def test_forced_replies_are_one_text_and_one_picture(slots: int) -> None:
    decoding = replace(DECODING, layout="forced", num_image_tokens=slots)
    answers, captions = set(), set()
    for seed in range(60):
        replies, fed = babble(seed, decoding)
        for reply, tokens in zip(replies, fed, strict=True):
            _check(reply, tokens, decoding)
            (segment,) = reply
            assert segment.caption is not None
            answers.add(len(segment.answer))
            captions.add(len(segment.caption))
    assert answers == captions == set(range(6)), "every length up to the longest is met"


def _check(reply: list[TokenSegment], fed: list[int], decoding: Decoding) -> None:
    for segment in reply:
        for text in (segment.answer, segment.caption or []):
            assert len(text) <= decoding.max_text_tokens and not {IC, IMG, EOS, PAD} & set(text)
    # What the model was fed is the reply's layout; what nothing follows need not be: the last slots, `</s>`.
    whole = [*laid_out(reply, decoding.num_image_tokens), EOS]
    if len(fed) > len(whole):  # the reply ended in a caption that was too long, and is left out
        assert fed[len(whole) - 1] == IC and len(fed) - len(whole) - decoding.caption_limit in (0, 1)
        fed = fed[: len(whole) - 1]
    assert fed == whole[: len(fed)] and len(whole) - len(fed) <= 1 + decoding.num_image_tokens


def test_the_fewest_and_the_most_pictures_are_kept() -> None:
    for seed in range(30):
        replies, _ = babble(seed, replace(DECODING, min_pictures=2, max_caption_tokens=1000))
        assert all(sum(segment.caption is not None for segment in reply) == 2 for reply in replies)
        replies, _ = babble(seed, replace(DECODING, max_pictures=0))
        assert all(segment.caption is None for reply in replies for segment in reply)


def test_the_slots_of_a_picture_go_in_together() -> None:
    class Painter(Babbler):
        """Says a word, begins a caption, draws, and ends."""

        def llama(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
            self.heard.append(input_ids)
            said = [5, IC, 6, IMG, EOS][len(self.heard) - 1]
            logits = torch.zeros(len(input_ids), 1, WORDS + 2)
            logits[..., said] = 1
            return SimpleNamespace(logits=logits, cache=None)

    model = Painter(0)
    (reply,) = decode_replies(cast(M2ChatModel, model), [[1, 3]], torch.zeros(1, 1), SPECIAL, DECODING)
    assert reply == [TokenSegment([5], [6])]
    assert [part.tolist() for part in model.heard] == [[[1, 3]], [[5]], [[IC]], [[6]], [[IMG] * 3]]


def test_a_caption_that_is_cut_is_not_drawn() -> None:
    class Hasty(Babbler):
        """Always wants to end at once, else to begin a caption, of which it finds no end."""

        def llama(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
            logits = torch.zeros(len(input_ids), 1, WORDS + 2)
            logits[..., [EOS, 5, IC]] = torch.tensor([3.0, 2.0, 4.0])
            return SimpleNamespace(logits=logits, cache=None)

    model = cast(M2ChatModel, Hasty(0))
    for limit in (7, None):
        decoding = replace(DECODING, max_caption_tokens=limit)
        *steps, (reply,) = stream_replies(model, [[1, 3]], torch.zeros(1, 1), SPECIAL, decoding)
        assert finished(reply) == [TokenSegment([], None, "caption")] and len(steps) == (limit or 5) + 1


@pytest.mark.parametrize(("pictures", "segment"), [(0, TokenSegment([5] * 5, None, "answer")), (2, None)])
def test_an_answer_ends_at_its_limit(pictures: int, segment: TokenSegment | None) -> None:
    class Talker(Babbler):
        """Says one word for ever; of the special tokens it prefers that which begins a caption."""

        def llama(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
            logits = torch.zeros(len(input_ids), 1, WORDS + 2)
            logits[..., [5, IC]] = torch.tensor([3.0, 2.0])
            return SimpleNamespace(logits=logits, cache=None)

    model = cast(M2ChatModel, Talker(0))
    decoding = replace(DECODING, max_pictures=pictures, min_pictures=pictures, max_caption_tokens=3)
    (reply,) = decode_replies(model, [[1, 3]], torch.zeros(1, 1), SPECIAL, decoding)
    # Where a picture is demanded, a caption follows; it finds no end either.
    assert reply == [segment or TokenSegment([5] * 5, None, "caption")]
    # Where no end of captions was learned, the limit is their end.
    forced = replace(decoding, layout="forced")
    assert decode_replies(model, [[1, 3]], torch.zeros(1, 1), SPECIAL, forced) == [
        [TokenSegment([5] * 5, [5] * 3, "answer")]
    ]


def test_sampling_follows_temperature_and_top_p() -> None:
    from m2chat.models.generation import _choose

    logits = torch.tensor([2.0, 1.0, 0.5, -1.0])
    generator = torch.Generator().manual_seed(0)
    hot = Decoding(temperature=1.0, top_p=0.7)
    drawn = _choose(logits.expand(400, -1), hot, generator)
    assert set(drawn) == {0, 1}, "0.61 and 0.22 of the likelihood: the third begins beyond 0.7"
    share = logits[:2].softmax(0)[0].item()
    assert drawn.count(0) / 400 == pytest.approx(share, abs=0.07)
    assert set(_choose(logits.expand(5, -1), Decoding(), None)) == {0}
    assert set(_choose(logits.expand(20, -1), replace(hot, top_p=0.0), generator)) == {0}
    assert set(_choose(logits.expand(20, -1), Decoding(temperature=1e-320), generator)) == {0}
