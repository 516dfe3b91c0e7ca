from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from m2chat.data.collate import Collator
from m2chat.errors import UserError
from m2chat.models.generation import Decoding, decode_replies
from m2chat.models.m2chat import M2ChatModel
from m2chat.pipeline import DrawSettings, Replier
from m2chat.pipeline.drawing import noise_seed, to_pictures
from m2chat.schema import Sample, Segment
from m2chat.text import Layout, view_of

Item = tuple[Sample, int, int | None]
MIXED = ("caption", "edit", "dialogue", "text", "story", "long")


@pytest.mark.parametrize("kind", ["free", "forced"])
def test_decoding_together_equals_decoding_alone(
    kind: Any, micro_model: M2ChatModel, collator: Collator, replier: Replier, items: dict[str, Item]
) -> None:
    batch = collator([items[name] for name in MIXED])
    prompts = [replier.layout.prompt(view_of(*items[name][:2]).request, 200)[0] for name in MIXED]
    assert len({len(prompt) for prompt in prompts}) > 3
    decoding = Decoding(kind, num_image_tokens=4, max_text_tokens=10, max_pictures=2)
    pixels = batch.context_pixels
    together = decode_replies(micro_model, prompts, pixels, replier.special, decoding)
    for row, prompt in enumerate(prompts):
        assert decode_replies(micro_model, [prompt], pixels[row : row + 1], replier.special, decoding) == [
            together[row]
        ]
    assert len({str(reply) for reply in together}) > 1


def test_greedy_text_is_what_a_plain_loop_says(
    micro_model: M2ChatModel, collator: Collator, replier: Replier, items: dict[str, Item]
) -> None:
    batch = collator([items["edit"]])
    (prompt, _) = replier.layout.prompt(view_of(*items["edit"][:2]).request, 200)
    decoding = Decoding("forced", num_image_tokens=1, max_text_tokens=6)
    ((segment,),) = decode_replies(micro_model, [prompt], batch.context_pixels, replier.special, decoding)
    query = micro_model.visual_query(micro_model.clip(batch.context_pixels))
    ids, special = list(prompt), replier.special
    for text in (segment.answer, segment.caption):
        said: list[int] = []
        while len(said) < 6:
            logits = micro_model.llama(torch.tensor([ids]), visual_query=query).logits[0, -1]
            logits[[special.ic, special.img]] = -torch.inf
            token = int(logits.argmax())
            if token == special.eos:
                break
            said.append(token)
            ids.append(token)
        assert text == said
        ids.append(special.ic)


def test_given_replies_come_back_with_pictures(collator: Collator, replier: Replier, items: dict[str, Item]) -> None:
    names = ("caption", "edit", "text", "two, first")
    batch = collator([items[name] for name in names])
    replies, notes = replier.reply(batch, given="reply")
    for name, reply, note in zip(names, replies, notes, strict=True):
        assert reply.segments == view_of(*items[name][:2]).reply
        drawn = [segment.caption is not None for segment in reply.segments]
        assert [image is not None for image in reply.images] == drawn
        assert len(note["gate"]) == len(note["cosine"]) == sum(drawn) and note["cut_tokens"] == 0
        assert all(0 <= gate <= 1 for gate in note["gate"])
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for reply in replies for image in reply.pictures)
    assert notes[0]["gate"] == [1.0], "a caption pair has neither answer nor context picture"


def test_a_given_caption_has_no_answer(collator: Collator, replier: Replier, items: dict[str, Item]) -> None:
    batch = collator([items["edit"], items["text"]])
    (edit, text), _ = replier.reply(batch, given="caption")
    caption = view_of(*items["edit"][:2]).reply[0].caption
    assert edit.segments == (Segment("", caption),) and len(edit.pictures) == 1
    assert text.segments == () == text.images


def test_pictures_do_not_depend_on_the_batch(collator: Collator, replier: Replier, items: dict[str, Item]) -> None:
    names = ("story", "caption", "two, first", "edit")
    together, _ = replier.reply(collator([items[name] for name in names]), given="reply")
    for row, name in enumerate(names):
        (alone,), _ = replier.reply(collator([items[name]]), given="reply")
        assert len(alone.pictures) == len(together[row].pictures) > 0
        for one, other in zip(alone.pictures, together[row].pictures, strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1  # rounding
    first, second = together[names.index("two, first")].pictures
    assert np.abs(first.astype(int) - second).max() > 10


def test_noise_belongs_to_seed_and_name(collator: Collator, replier: Replier, items: dict[str, Item]) -> None:
    assert (
        noise_seed(0, "a") == noise_seed(0, "a")
        and len({noise_seed(0, "a"), noise_seed(1, "a"), noise_seed(0, "b")}) == 3
    )
    assert 0 <= noise_seed(0, "a") < 2**63
    sample, turn, target = items["edit"]
    batch = collator([items["edit"], (replace(sample, id="renamed"), turn, target)])
    (one, renamed), _ = replier.reply(batch, given="reply")
    assert np.abs(one.pictures[0].astype(int) - renamed.pictures[0]).max() > 10


@pytest.mark.parametrize("kind", ["free", "forced"])
def test_a_reply_of_its_own(
    kind: Any, micro_model: M2ChatModel, layout: Layout, collator: Collator, items: dict[str, Item]
) -> None:
    replier = Replier(micro_model, layout, Decoding(kind, max_text_tokens=5, max_pictures=2), DrawSettings(steps=2))
    assert replier.decoding.num_image_tokens == layout.num_image_tokens
    replies, notes = replier.reply(collator([items[name] for name in MIXED]))
    for reply, note in zip(replies, notes, strict=True):
        drawn = [segment.caption is not None for segment in reply.segments]
        assert len(reply.images) == len(drawn) and len(reply.pictures) == sum(drawn) == len(note["gate"]) <= 2
        if kind == "forced":
            assert drawn == [True]
    assert notes[MIXED.index("long")]["cut_tokens"] > 0


def test_without_the_image_branch_the_gate_is_one(
    micro_model: M2ChatModel, layout: Layout, collator: Collator, items: dict[str, Item]
) -> None:
    batch = collator([items["edit"]])
    draw = DrawSettings(steps=2)
    seeing = Replier(micro_model, layout, Decoding(), draw).reply(batch, "reply")[1][0]["gate"]
    blind = Replier(micro_model, layout, Decoding(), draw, use_image=False).reply(batch, "reply")[1][0]["gate"]
    assert blind == [1.0] and seeing != [1.0]


def test_the_decoders_own_encoders_draw_true_captions(
    micro_model: M2ChatModel, layout: Layout, collator: Collator, items: dict[str, Item]
) -> None:
    replier = Replier(micro_model, layout, Decoding(), DrawSettings(steps=2), conditioner="text_encoder")
    batch = collator([items["text"], items["edit"]])
    (_, reply), _ = replier.reply(batch, "reply")
    sample, turn, _ = items["edit"]
    expected = micro_model.decoder.sample(
        *micro_model.decoder.encode_text(batch.caption_ids[1:], batch.caption_ids_2[1:]),
        torch.tensor([[32.0, 32, 0, 0, 32, 32]]), [noise_seed(0, f"{sample.id}#{turn}/0")], 2, 5.0,
    )  # fmt: skip
    assert np.abs(reply.pictures[0].astype(int) - to_pictures(expected)[0]).max() <= 1
    with pytest.raises(UserError, match="conditioner='text_encoder'"):
        replier.reply(collator([items["two, first"]]), "reply")


def test_to_pictures() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    (picture,) = to_pictures(pixels)
    assert picture.shape == (1, 5, 3) and picture[0, :, 0].tolist() == [0, 0, 128, 255, 255]
