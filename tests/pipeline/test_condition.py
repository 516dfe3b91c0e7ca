"""The condition of a picture is the same in training and in generation, and hangs on what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.batch import Batch
from m2chat.data.collate import Collator
from m2chat.models.denoising import Denoising
from m2chat.models.generation import TokenSegment, finished, stream_replies
from m2chat.models.m2chat import DiffusionNoise, M2ChatModel
from m2chat.models.m3adapter import Condition, M3Adapter
from m2chat.pipeline import M2ChatPipeline, Replier
from m2chat.pipeline.conditions import Place, drawn_places
from m2chat.pipeline.inputs import ReplyInputs
from m2chat.schema import Sample, Turn
from m2chat.text.view import segments_of

Item = tuple[Sample, int, int | None]
Noise = Callable[[Batch], DiffusionNoise]
DRAWN = ("caption", "instruct", "edit", "dialogue", "story", "two, first", "two, second", "long")


@pytest.fixture
def in_generation(replier: Replier, monkeypatch: pytest.MonkeyPatch) -> Callable[[Batch], dict[tuple[int, int], Any]]:
    """Conditions under teacher forcing, (h_align, h_palign, gate), by row and segment."""

    def conditions(batch: Batch) -> dict[tuple[int, int], Any]:
        told: list[Tensor] = []

        def no_drawing(h_align: Tensor, h_palign: Tensor, *_: Any) -> Iterator[Denoising]:
            told.extend([h_align, h_palign])
            nothing = torch.zeros(len(h_align), 8, 8, 8)
            yield Denoising(1, 1, 0, nothing, nothing)

        monkeypatch.setattr(replier.model.decoder, "denoise", no_drawing)
        replies, notes = replier.reply(batch, given="reply")
        places = [
            (i, k) for i, reply in enumerate(replies) for k, image in enumerate(reply.images) if image is not None
        ]
        gates = [gate for note in notes for gate in note["gate"]]
        assert len(places) == len(gates)
        return {place: (told[0][row], told[1][row], gates[row]) for row, place in enumerate(places)} if places else {}

    return conditions


def in_training(model: M2ChatModel, batch: Batch, noise: Noise) -> Condition:
    with torch.no_grad():
        return model(batch, noise(batch)).condition


def assert_equal(training: Condition, row: int, generated: tuple[Tensor, Tensor, float]) -> None:
    assert training.h_palign is not None
    torch.testing.assert_close(generated[0], training.h_align[row], atol=1e-4, rtol=0)
    torch.testing.assert_close(generated[1], training.h_palign[row], atol=1e-4, rtol=0)
    assert generated[2] == pytest.approx(training.gate[row].item(), abs=1e-4)


def test_in_a_ragged_batch_of_every_kind(
    micro_model: M2ChatModel,
    collator: Collator,
    items: dict[str, Item],
    noise: Noise,
    in_generation: Callable[[Batch], dict[tuple[int, int], Any]],
) -> None:
    batch = collator(list(items.values()))
    assert len(set(batch.attention_mask.sum(1).tolist())) > 4 and batch.has_context.unique().numel() == 2
    training, generated = in_training(micro_model, batch, noise), in_generation(batch)
    for row, name in enumerate(items):
        if name == "text":
            assert not any(place[0] == row for place in generated)
        else:
            assert_equal(training, row, generated[row, items[name][2] or 0])
    values = training.h_align[[list(items).index(name) for name in DRAWN]]
    assert torch.pdist(values.flatten(1)).min() > 1e-2, "conditions that are all alike would prove nothing"


@pytest.mark.parametrize("name", DRAWN)
def test_alone(
    name: str,
    micro_model: M2ChatModel,
    collator: Collator,
    items: dict[str, Item],
    noise: Noise,
    in_generation: Callable[[Batch], dict[tuple[int, int], Any]],
) -> None:
    batch = collator([items[name]])
    assert bool(batch.cut_tokens[0]) == (name == "long")
    assert_equal(in_training(micro_model, batch, noise), 0, in_generation(batch)[0, items[name][2] or 0])


@pytest.mark.parametrize("layers", [[-1], [2, -1]])
@pytest.mark.parametrize("kind", ["free", "forced"])
def test_the_states_that_decoding_keeps_give_the_condition_of_a_second_pass(
    kind: Any,
    layers: list[int],
    pipe: M2ChatPipeline,
    collator: Collator,
    items: dict[str, Item],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe.model.m3adapter.config, "layers", layers)
    monkeypatch.setattr(M3Adapter, "mix_layers", lambda _, states: states.mean(0) if states.ndim == 4 else states)
    replier = pipe.replier("force", max_images=2, max_new_tokens=24)
    replier.decoding = replace(replier.decoding, layout=kind)
    inputs = ReplyInputs.of_batch(collator([items[name] for name in ("edit", "dialogue", "story", "text")]))
    start = replier._start(inputs.views, "nothing")
    reader = replier._reader(start.prompts, inputs)
    compared: set[Place] = set()
    reads: list[Tensor] = []
    read = replier.model.read
    monkeypatch.setattr(replier.model, "read", lambda *args: reads.append(args[0]) or read(*args))
    replies: list[list[TokenSegment]] = []
    pixels, arguments = inputs.context_pixels, (replier.special, replier.decoding, None, reader)
    for replies in stream_replies(replier.model, start.prompts, pixels, *arguments):
        # A picture's condition is needed as soon as its slots are decided, before the model has read them.
        drawn = {(i, k) for i, reply in enumerate(replies) for k in range(len(reply) - 1)}
        for place in drawn - compared:
            assert_kept(replier, [place], start.prompts, replies, inputs, reader, reads)
        compared |= drawn
    replies = [finished(reply) for reply in replies]
    places = drawn_places(replies)
    assert len({i for i, _ in places}) > 1 and (kind == "forced" or compared & set(places))
    assert_kept(replier, places, start.prompts, replies, inputs, reader, reads)


def assert_kept(replier: Replier, *arguments: Any) -> None:
    """Both conditions are equal; the one is made without reading, the other by it."""
    *shared, reader, reads = arguments
    reads.clear()
    with torch.no_grad():
        kept = replier.conditions.read(*shared, reader)
        assert not reads
        again = replier.conditions.read(*shared)
        assert reads
    for name in ("h_align", "h_palign", "gate", "cosine"):
        torch.testing.assert_close(getattr(kept, name), getattr(again, name), atol=1e-4, rtol=0)


def with_words(item: Item, answer: str | None = None, caption: str | None = None) -> Item:
    """The item with another answer, or with another caption of the same picture."""
    sample, turn, target = item
    reply = sample.turns[turn]
    (segment,), _ = segments_of(reply, sample)
    (picture,) = reply.pictures
    changed = Turn("assistant", (segment.answer if answer is None else answer, picture))
    images = list(sample.images)
    images[picture] = replace(images[picture], caption=segment.caption if caption is None else caption)
    turns = (*sample.turns[:turn], changed, *sample.turns[turn + 1 :])
    return replace(sample, turns=turns, images=tuple(images)), turn, target


def test_targets_are_of_the_caption_never_of_the_answer(
    micro_model: M2ChatModel, collator: Collator, items: dict[str, Item], noise: Noise
) -> None:
    item = items["edit"]
    batches = [
        collator([item]),
        collator([with_words(item, answer="something else entirely")]),
        collator([with_words(item, caption="a small white ring at the top on a black background")]),
    ]
    with torch.no_grad():
        first, answered, captioned = (micro_model(batch, noise(batch)) for batch in batches)
    assert torch.equal(first.e_clip, answered.e_clip) and torch.equal(first.e_pclip, answered.e_pclip)
    assert (first.e_clip - captioned.e_clip).abs().max() > 0.1
    assert (first.e_pclip - captioned.e_pclip).abs().max() > 0.1
    # The answer does reach the model, by the way of Eq. 3.
    assert not torch.allclose(first.condition.cosine, answered.condition.cosine, atol=1e-4)
    assert not torch.allclose(first.condition.h_align, answered.condition.h_align, atol=1e-4)


def test_the_picture_reaches_the_condition_by_both_ways(
    micro_model: M2ChatModel, collator: Collator, items: dict[str, Item]
) -> None:
    batch = collator([items["edit"]])
    other = replace(batch, context_pixels=batch.context_pixels.flip(2))
    states, f_img, _ = micro_model.read(batch.input_ids, batch.context_pixels)
    states_2, f_img_2, _ = micro_model.read(other.input_ids, other.context_pixels)
    both = micro_model.condition(batch, states, f_img).h_align
    for changed in ((states_2, f_img), (states, f_img_2)):
        assert (micro_model.condition(batch, *changed).h_align - both).abs().max() > 1e-4


def test_logits_are_those_of_the_scored_positions(
    micro_model: M2ChatModel, collator: Collator, items: dict[str, Item], noise: Noise
) -> None:
    batch = collator([items["dialogue"], items["edit"]])
    with torch.no_grad():
        output = micro_model(batch, noise(batch))
        query = micro_model.visual_query(micro_model.clip(batch.context_pixels))
        logits = micro_model.llama(batch.input_ids, visual_query=query).logits
    assert output.logits is not None and output.logit_labels is not None
    rows, places = (batch.labels[:, 1:] >= 0).nonzero(as_tuple=True)
    assert torch.equal(output.logit_labels, batch.input_ids[rows, places + 1])
    torch.testing.assert_close(output.logits, logits[rows, places], atol=1e-4, rtol=1e-4)


def test_stage_1_may_be_given_what_the_frozen_networks_say(
    micro_model: M2ChatModel, collator: Collator, items: dict[str, Item], noise: Noise
) -> None:
    batch = collator([items["caption"], items["instruct"]])
    with torch.no_grad():
        raw = micro_model(batch, noise(batch), use_image=False, with_text=False)
        features = micro_model.frozen_features(batch)
        blank = replace(batch, context_pixels=batch.context_pixels * 0, target_pixels=batch.target_pixels * 0)
        kept = micro_model(blank, noise(batch), use_image=False, with_text=False, features=features)
    assert raw.logits is None
    torch.testing.assert_close(kept.condition.h_align, raw.condition.h_align)
    torch.testing.assert_close(kept.prediction, raw.prediction)
    assert torch.equal(kept.e_clip, raw.e_clip) and torch.equal(kept.diffusion_target, raw.diffusion_target)


def test_dropped_conditions_are_zeros(
    micro_model: M2ChatModel, collator: Collator, items: dict[str, Item], noise: Noise
) -> None:
    batch = collator([items["caption"], items["edit"]])
    drawn = noise(batch)
    dropped = replace(drawn, drop=torch.tensor([True, False]))
    with torch.no_grad():
        plain, some = micro_model(batch, drawn), micro_model(batch, dropped)
        h_align, h_palign = some.condition.h_align, some.condition.h_palign
        noisy, _ = micro_model.decoder.diffuse(
            micro_model.decoder.encode_pixels(batch.target_pixels), drawn.noise, drawn.timesteps
        )
        blind = micro_model.decoder.predict(noisy, drawn.timesteps, h_align * 0, h_palign * 0, batch.time_ids)
    torch.testing.assert_close(some.prediction[0], blind[0])
    torch.testing.assert_close(some.prediction[1], plain.prediction[1])
    assert torch.equal(h_align, plain.condition.h_align), "L_align sees the condition undropped"
