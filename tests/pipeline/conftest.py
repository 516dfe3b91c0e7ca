"""Conversations of every kind, and what makes batches and replies of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from m2chat.batch import Batch
from m2chat.data.collate import Collator
from m2chat.data.network_inputs import VisionInput
from m2chat.data.sources import caption_sample
from m2chat.models.config import BackboneConfig
from m2chat.models.generation import Decoding
from m2chat.models.m2chat import DiffusionNoise, M2ChatModel
from m2chat.pipeline import DrawSettings, M2ChatPipeline, Replier
from m2chat.schema import Sample, Turn
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer
from m2chat.text.view import replies_of
from m2chat.worlds.shapes.conversations import ConversationMaker

Item = tuple[Sample, int, int | None]
SIZE = 32


@pytest.fixture(scope="session")
def layout(backbone: BackboneConfig) -> Layout:
    return Layout(M2ChatTokenizer(backbone.language_model), num_image_tokens=4, max_tokens=256)


@pytest.fixture(scope="session")
def collator(backbone: BackboneConfig, layout: Layout) -> Collator:
    return Collator(layout, CaptionTokens(backbone.image_decoder), VisionInput.of(backbone.vision_encoder), SIZE)


@pytest.fixture(scope="session")
def replier(micro_model: M2ChatModel, layout: Layout) -> Replier:
    return Replier(micro_model, layout, Decoding(), DrawSettings(steps=3, size=SIZE))


@pytest.fixture(scope="session")
def items() -> dict[str, Item]:
    """Replies with one picture, of every kind; one with two; one without; and one behind a long history."""
    maker = ConversationMaker("val", 0)
    made = {kind: getattr(maker, kind)().sample(kind, kind, 0) for kind in ("instruct", "edit", "dialogue", "story")}
    talk = made["dialogue"]
    with_picture = next(turn for turn in replies_of(talk) if talk.turns[turn].pictures)
    without = next(turn for turn in replies_of(talk) if not talk.turns[turn].pictures)
    last = replies_of(made["story"])[-1]
    story = made["story"]
    two = replace(story, id="two", turns=(story.turns[0], Turn("assistant", ("first", 0, "and then", 1))))
    # So much that something must be cut, and less than generation would keep free for a reply that it does not know.
    chatter = tuple(Turn(role, ("so many words about nothing " * 2,)) for role in ("user", "assistant")) * 4
    return {
        "caption": (caption_sample("caption/0", "cc3m", story.images[0], {}), 1, None),
        "instruct": (made["instruct"], 1, None),
        "edit": (made["edit"], 1, None),
        "dialogue": (talk, with_picture, None),
        "text": (talk, without, None),
        "story": (story, last, None),
        "two, first": (two, 1, 0),
        "two, second": (two, 1, 1),
        "long": (replace(talk, id="long", turns=(*chatter, *talk.turns)), with_picture + len(chatter), None),
    }


def no_noise(batch: Batch) -> DiffusionNoise:
    """The random part of a training pass, without any dropped condition."""
    shape = (len(batch), 8, 8, 8)
    dropped = torch.zeros(shape[:1], dtype=torch.bool)
    return DiffusionNoise(torch.arange(len(batch)), torch.full(shape[:1], 500), torch.zeros(shape), dropped)


@pytest.fixture(scope="session")
def noise() -> object:
    return no_noise


@pytest.fixture(scope="session")
def pipe() -> M2ChatPipeline:
    """The shipped micro weights; only for tests that change nothing."""
    pipe = M2ChatPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe
