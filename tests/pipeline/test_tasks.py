"""The paper's tasks and the view inside, with the shipped micro weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from m2chat.errors import UserError
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.denoising import Denoising
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m3adapter import attention_maps
from m2chat.pipeline import M2ChatPipeline, OutputImage, PipelineOutput
from m2chat.pipeline.lens import Reading, charts, figure, look_inside, strip
from m2chat.pipeline.tasks import (
    decoder_alone,
    dialogue,
    edit,
    edit_rounds,
    similar,
    story,
    story_parts,
    text_to_image,
    wish,
)
from m2chat.worlds.shapes.scenes import Scene, Shape, render

PICTURE = render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))


def pictures(outputs: list[PipelineOutput]) -> list[Any]:
    return [np.asarray(image) for output in outputs for image in output.images]


def captions(outputs: list[PipelineOutput]) -> list[str]:
    return [part.caption for output in outputs for part in output.segments if isinstance(part, OutputImage)]


def test_text_to_image(pipe: M2ChatPipeline) -> None:
    outputs = text_to_image(pipe, "a small red ring on the left on a white background", (0, 1), steps=2)
    first, second = pictures(outputs)
    assert not np.array_equal(first, second) and [output.seed for output in outputs] == [0, 1]
    assert set(captions(outputs)) == {"a small red ring on the left on a white background"}


def test_a_wish_has_one_caption_and_a_picture_for_each_seed(pipe: M2ChatPipeline) -> None:
    outputs = wish(pipe, "I dream of a ball like the sea in front of snow", steps=2)
    assert len({image.tobytes() for image in pictures(outputs)}) == 4 and len(set(captions(outputs))) == 1


def test_each_edit_starts_from_the_one_before(pipe: M2ChatPipeline) -> None:
    both = pictures(edit(pipe, PICTURE, ["turn it into a ring", "make it small"], steps=2))
    (alone,) = pictures(edit(pipe, PICTURE, ["make it small"], steps=2))
    assert len(both) == 2 and not np.array_equal(both[1], alone)
    blank = pictures(edit(pipe, PICTURE, ["", " \t", " make it small ", "\n"], steps=2))
    assert len(blank) == 1 and np.array_equal(blank[0], alone)
    for nothing in ([], ["", "  "]):
        with pytest.raises(UserError, match="at least one change"):
            edit(pipe, PICTURE, nothing)


def test_similar_pictures_see_the_first(pipe: M2ChatPipeline) -> None:
    outputs = similar(pipe, PICTURE, (0, 1), steps=2)
    assert len(pictures(outputs)) == 2 and all(gate < 1 for output in outputs for gate in output.gate)


def test_a_story_has_its_frames_and_the_decoders_beside_them(pipe: M2ChatPipeline) -> None:
    told = story(pipe, "tell me how it ripens : a large ring on a white background", 3, steps=2)
    assert len(told.parts) == len(pictures(told.parts)) == len(told.decoder_alone) == 3
    assert told.decoder_alone[0].shape == (32, 32, 3) and all(part.seed == 0 for part in told.parts)
    with pytest.raises(UserError, match="at least one part"):
        story(pipe, "once", 0)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Denoising steps as they are done; what stands first in it is called at the second one."""
    denoise, seen = ImageDecoder.denoise, []

    def watched(self: ImageDecoder, *args: Any) -> Iterator[Denoising]:
        for state in denoise(self, *args):
            seen.append(state.step)
            if state.step == 2:
                seen[0]()
            yield state

    monkeypatch.setattr(ImageDecoder, "denoise", watched)
    yield seen


@pytest.mark.parametrize(
    ("task", "what"), [(text_to_image, "a ring"), (wish, "a ball like the sea"), (similar, PICTURE)]
)
def test_a_task_is_stopped_within_one_step(pipe: M2ChatPipeline, steps: list[Any], task: Any, what: Any) -> None:
    stop = threading.Event()
    steps.append(stop.set)
    assert task(pipe, what, (0, 1), stop, steps=20) == [] and steps[1:] == [1, 2]
    assert task(pipe, what, (0, 1), stop, steps=20) == [] and steps[1:] == [1, 2], "and stays so"


def test_a_stopped_story_draws_nothing_more(pipe: M2ChatPipeline, steps: list[Any]) -> None:
    session = pipe.session(steps=20, seed=0, image="force", max_images=1)
    steps.append(session.stop)
    parts = list(story_parts(session, "tell me how it ripens : a large ring on a white background"))
    assert steps[1:] == [1, 2] and [part.stopped for part in parts] == [True] and decoder_alone(session, parts) == []


def test_stopped_between_two_rounds_no_other_one_begins(pipe: M2ChatPipeline) -> None:
    session = pipe.session(steps=2, seed=0)
    rounds = edit_rounds(session, PICTURE, ["turn it into a ring", "make it small"])
    assert next(rounds).images
    session.stop()
    assert list(rounds) == [] and len(session.images) == 2


def test_tasks_take_turns_with_others(pipe: M2ChatPipeline, steps: list[Any]) -> None:
    free = []
    for act in (lambda: text_to_image(pipe, "a ring", steps=3), lambda: wish(pipe, "a ring", (0,), steps=3)):
        original, pipe.lock = pipe.lock, Counting()  # type: ignore[assignment]
        steps[:] = [lambda: None]
        try:
            act()
            free.append(pipe.lock.entered > len(steps) - 1 >= 3)  # type: ignore[attr-defined]
        finally:
            pipe.lock = original
    assert free == [True, True]


class Counting:
    """A lock that counts."""

    entered = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None:
        pass


def test_a_dialogue(pipe: M2ChatPipeline) -> None:
    replies = dialogue(pipe, ["hello", ("which colour does it have ?", PICTURE)], image="never")
    assert len(replies) == 2 and all(reply.text for reply in replies)


def test_the_lens_ends_where_the_reply_was_drawn(pipe: M2ChatPipeline) -> None:
    session = pipe.session(steps=2, seed=0)
    session.reply("hello", image="never")
    with pytest.raises(UserError, match="that reply has 0 pictures"):
        look_inside(session)
    session.reply("turn it into a ring", [PICTURE], image="force", max_images=1)
    with pytest.raises(UserError, match="that one is no reply"):
        look_inside(session, 2)
    lens = look_inside(session)
    layers = pipe.model.llama.config.num_hidden_layers
    assert len(lens.layers) == len(lens.gates) == layers + 1
    assert np.abs(lens.layers[-1].astype(int) - session.images[-1].pixels).max() <= 1
    assert lens.gates[-1] == pytest.approx(session.notes[-1]["gate"][0], abs=1e-4)
    assert not np.array_equal(lens.layers[0], lens.layers[-1])
    assert lens.gate_by_turn == [[], session.notes[-1]["gate"]] and np.array_equal(lens.context, PICTURE)
    assert lens.token_attention.shape == (pipe.model.decoder.queries, len(lens.tokens))
    assert np.allclose(lens.token_attention.sum(1), 1, atol=1e-4) and lens.picture_attention.shape == (8, 8)
    assert "".join(lens.tokens[:-1]).replace(" ", "").startswith(lens.caption.replace(" ", "")[:4])
    readings = [Reading({}, "–"), *[Reading({"shape": "ring"}, "ring")] * (layers + 1)]
    assert figure(lens).axes and figure(lens, readings).axes
    deep = replace(lens, layers=lens.layers[:1] * 31, names=lens.names[:1] * 31, gates=lens.gates[:1] * 31)
    page = figure(deep)
    assert sum(bool(axis.images) for axis in page.axes) == 1 + 31 + 2, "context, layers, two attention maps"
    assert page.get_figwidth() <= 22
    assert all(plot.axes for plot in charts(lens, readings).values()) and len(charts(lens)) == 4
    assert [title.partition(",")[0] for _, title, _ in strip(lens)] == [
        "context", "embedding", *(f"layer {k}" for k in range(1, layers + 1)),
    ]  # fmt: skip


def test_the_lens_of_an_adapter_that_reads_several_layers_ends_with_all_of_them(
    pipe: M2ChatPipeline, backbone: BackboneConfig
) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(pipe.model)
    model.m3adapter = build_m2chat(backbone, M3AdapterConfig(width=48, heads=2, layers=(1, -1))).m3adapter.eval()
    pipe = M2ChatPipeline(model, pipe.origin)
    session = pipe.session(steps=2, seed=0)
    session.reply("turn it into a ring", [PICTURE], image="force", max_images=1)
    lens, layers = look_inside(session), pipe.model.llama.config.num_hidden_layers
    assert lens.names[-2:] == [f"layer {layers}", "reply"] and len(lens.by_layer) == layers + 1
    assert len(lens.layers) == len(lens.gates) == len(lens.names) == layers + 2
    assert np.abs(lens.layers[-1].astype(int) - session.images[-1].pixels).max() <= 1
    assert not np.array_equal(lens.layers[-2], lens.layers[-1])
    assert np.allclose(lens.token_attention.sum(1), 1, atol=1e-4)
    assert figure(lens).axes


def test_attention_maps_are_what_the_adapter_does(pipe: M2ChatPipeline) -> None:
    adapter = pipe.model.m3adapter
    block = adapter.text_blocks[0]
    torch.manual_seed(0)
    x, source = torch.randn(2, 5, adapter.config.width), torch.randn(2, 7, pipe.model.llama.config.hidden_size)
    mask = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    weights = block.attention(x, source, mask)
    assert torch.allclose(weights.sum(-1)[0], torch.ones(())) and not weights[1].any()
    value = block.to_v(source).unflatten(-1, (block.heads, -1)).transpose(1, 2)
    attended = block.to_out((weights @ value).transpose(1, 2).flatten(2))
    expected = x + attended
    expected = expected + block.feed_forward(block.norm_out(expected))
    torch.testing.assert_close(expected, block(x, source, mask), atol=1e-5, rtol=1e-4)
    f_img = torch.randn(2, 65, pipe.model.clip.width)
    words, seen = attention_maps(adapter, source, mask, f_img)
    assert words.shape == (2, adapter.queries.shape[0], 7) and torch.allclose(seen.sum(-1), torch.ones(()), atol=1e-5)
