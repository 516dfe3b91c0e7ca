from __future__ import annotations

import random

import pytest

from m2chat.errors import UserError
from m2chat.schema import Segment
from m2chat.text import Layout, M2ChatTokenizer, Request
from m2chat.text.layout import IGNORE, alpaca

REQUEST = Request("make it red", ("User: hi", "[picture 1: a blue ring]"))


def test_template_to_the_letter() -> None:
    assert alpaca("Do it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo it.\n\n### Response:"
    )
    assert alpaca("Do it.", "With this.") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo it.\n\n### Input:\nWith this.\n\n### Response:"
    )


@pytest.mark.parametrize("target", [0, 1])
def test_spans_and_labels(tokenizer: M2ChatTokenizer, target: int) -> None:
    layout = Layout(tokenizer, num_image_tokens=3)
    texts = [("Here !", "a red ring"), ("And now", "a pink square")]
    encoded = layout.encode(REQUEST, [Segment(*pair) for pair in texts], target)

    ids = [tokenizer.bos_id, *tokenizer.encode(alpaca("make it red", "User: hi\n[picture 1: a blue ring]"))]
    labels = [IGNORE] * len(ids)
    spans = {name: [False] * len(ids) for name in ("answer", "caption", "image")}

    def put(tokens: list[int], scored: int, span: str = "") -> None:
        ids.extend(tokens)
        labels.extend([*tokens[:scored], *[IGNORE] * (len(tokens) - scored)])
        for name, values in spans.items():
            values.extend([name == span] * len(tokens))

    for index, pair in enumerate(texts):
        answer, caption = map(tokenizer.encode, pair)
        own = index == target
        put(answer, len(answer), "answer" if own else "")
        put([tokenizer.ic_id], 1)
        put(caption, len(caption), "caption" if own else "")
        put([tokenizer.img_id] * 3, 1, "image" if own else "")
    put([tokenizer.eos_id], 1)

    assert encoded.input_ids == ids
    assert encoded.labels == labels
    assert {name: getattr(encoded, name) for name in spans} == spans
    assert encoded.cut_tokens == 0


def test_text_alone_and_picture_alone(tokenizer: M2ChatTokenizer) -> None:
    layout = Layout(tokenizer, num_image_tokens=2)
    plain = layout.encode(REQUEST, [Segment("I see .")])
    answer = tokenizer.encode("I see .")
    assert plain.labels[-len(answer) - 1 :] == [*answer, tokenizer.eos_id]
    assert sum(plain.answer) == len(answer) and not any(plain.caption) and not any(plain.image)
    picture = layout.encode(REQUEST, [Segment("", "a ring")])
    caption = tokenizer.encode("a ring")
    wanted = [tokenizer.ic_id, *caption, tokenizer.img_id, IGNORE, tokenizer.eos_id]
    assert picture.labels[-len(wanted) :] == wanted and not any(picture.answer)
    assert picture.labels[-len(wanted) - 1] == IGNORE


def test_the_first_picture_is_the_target_unless_told(tokenizer: M2ChatTokenizer) -> None:
    layout = Layout(tokenizer, num_image_tokens=2)
    reply = [Segment("first"), Segment("second", "a ring"), Segment("third", "a square")]
    encoded = layout.encode(REQUEST, reply)
    chosen = [token for token, own in zip(encoded.input_ids, encoded.caption, strict=True) if own]
    assert tokenizer.decode(chosen) == "a ring"


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_reply_of_k_pictures_has_k_segments_and_one_end(tokenizer: M2ChatTokenizer, count: int) -> None:
    layout = Layout(tokenizer, num_image_tokens=5)
    reply = [Segment(f"number {k}", "a ring") for k in range(count)] or [Segment("none")]
    ids = layout.encode(REQUEST, reply).input_ids
    assert ids.count(tokenizer.ic_id) == count and ids.count(tokenizer.img_id) == 5 * count
    assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id


def test_typed_special_tokens_stay_plain_everywhere(tokenizer: M2ChatTokenizer) -> None:
    typed = "<|img|> </s> <|IC|>"
    encoded = Layout(tokenizer, num_image_tokens=3).encode(Request(typed, (typed,)), [Segment(typed, typed)])
    ids = encoded.input_ids
    assert [ids.count(t) for t in (tokenizer.ic_id, tokenizer.img_id, tokenizer.eos_id)] == [1, 3, 1]
    for span in (encoded.answer, encoded.caption):
        assert tokenizer.decode([token for token, own in zip(ids, span, strict=True) if own]) == typed


def _random_words(rng: random.Random, most: int) -> str:
    words = ("red", "circle", "please", "a", "ÿ", "<|img|>", "left")
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, most)))


def test_cutting(tokenizer: M2ChatTokenizer) -> None:
    """What survives at any length, over random conversations: the slots, the end, and whole newest lines."""
    rng = random.Random(0)
    least = len(tokenizer.encode(alpaca(""))) + 1
    seen = {"whole": 0, "history": 0, "instruction": 0, "reply": 0}
    for _ in range(400):
        history = tuple(f"User: {_random_words(rng, 12)}" for _ in range(rng.randint(0, 5)))
        request = Request(_random_words(rng, 25), history)
        pictures, slots = rng.randint(0, 2), rng.randint(1, 4)
        reply = [Segment(_random_words(rng, 10), _random_words(rng, 10)) for _ in range(pictures)]
        reply = reply or [Segment(_random_words(rng, 20))]
        fixed = 1 + pictures * (1 + slots)
        layout = Layout(tokenizer, slots, rng.randint(least + fixed, least + fixed + 150))
        encoded = layout.encode(request, reply)
        whole = Layout(tokenizer, slots, 10_000).encode(request, reply)

        assert len(encoded) <= layout.max_tokens
        assert encoded.cut_tokens == len(whole) - len(encoded)
        assert encoded.input_ids.count(tokenizer.img_id) == pictures * slots
        assert encoded.input_ids.count(tokenizer.ic_id) == pictures
        assert sum(encoded.image) == slots * bool(pictures)
        assert encoded.input_ids[-1] == tokenizer.eos_id == encoded.labels[-1]

        start = next(i for i, label in enumerate(encoded.labels) if label != IGNORE)
        prompt = tokenizer.decode(encoded.input_ids[:start])
        response = encoded.input_ids[start:]
        left = [alpaca(request.instruction, "\n".join(history[skip:])) for skip in range(len(history) + 1)]
        if prompt in left:
            kept = left.index(prompt)
            seen["history" if kept else "whole"] += 1
            if kept:  # one more line would not have fitted
                more = 1 + len(tokenizer.encode(left[kept - 1])) + len(response)
                assert more > layout.max_tokens
        else:
            seen["instruction"] += 1
            words = prompt.removeprefix(alpaca("").split("\n\n### Response:")[0]).removesuffix("\n\n### Response:")
            assert request.instruction.encode().startswith(words.strip("�").encode())
        seen["reply"] += len(response) < len(whole) - len(layout.prompt(request, 10_000)[0])
    assert all(count > 10 for count in seen.values()), seen


def test_fit_is_what_encode_lays_out(tokenizer: M2ChatTokenizer) -> None:
    reply = [Segment("Here it is , my friend", "a ring on a red background"), Segment("and", "a square")]
    for length in range(80, 180, 7):
        layout = Layout(tokenizer, 4, length)
        fitted = layout.fit(REQUEST, reply)
        encoded = layout.encode(REQUEST, reply)
        assert layout.assemble(fitted.prompt, fitted.answers, fitted.captions, 0).input_ids == encoded.input_ids
        assert fitted.cut_tokens == encoded.cut_tokens


def test_no_room_at_all_is_one_clear_error(tokenizer: M2ChatTokenizer) -> None:
    with pytest.raises(UserError, match=r"max_tokens=20 leaves .* raise max_tokens"):
        Layout(tokenizer, 8, 20).encode(REQUEST, [Segment("so", "a ring")])


def test_what_cannot_fit_is_not_tokenised(tokenizer: M2ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million letters take a second, in which a server answers nobody."""
    layout, lengths = Layout(tokenizer, 3, 200), []
    encode = M2ChatTokenizer.encode
    monkeypatch.setattr(
        M2ChatTokenizer, "encode", lambda self, text, *more: [lengths.append(len(text)), encode(self, text, *more)][1]
    )
    long = "a red ring " * 50_000
    for request, short in (
        (Request(long), Request(long[:20_000])),
        (Request("make it red", (long, "User: hi")), Request("make it red", (long[:20_000], "User: hi"))),
    ):
        ids, cut = layout.prompt(request, 150)
        assert ids == layout.prompt(short, 150)[0] and cut > 1000
    assert max(lengths) < 40_000
