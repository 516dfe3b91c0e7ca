"""The rows beside M²Chat: pipelines as they come, and a language model whose words a Stable Diffusion reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.baselines.pipelines.module import DiffusersModule
from m2chat.baselines.vlm_sd.module import VLMSDModule
from m2chat.baselines.vlm_sd.replier import prompt_of
from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.schema import Segment
from m2chat.text import view_of
from m2chat.training.config import EvalConfig

MICRO = Path(__file__).parents[2] / "data" / "micro"
FEW = EvalConfig(steps=3, max_tokens=256, max_text_tokens=8)


@pytest.fixture(scope="module")
def batch(micro: Any) -> Batch:
    return next(iter(micro.data("m3ft", batch_size=8).train_dataloader())).ready()


@pytest.fixture(scope="module")
def sd15(micro: Any) -> BackboneConfig:
    backbone = micro.backbone()
    backbone.image_decoder = str(MICRO / "sd15")
    return backbone


@pytest.fixture(scope="module")
def module(sd15: BackboneConfig) -> VLMSDModule:
    made = VLMSDModule(backbone=sd15, evaluation=FEW)
    made.configure_model()
    return made


def test_exactly_unet_and_language_side_are_trained(module: VLMSDModule, batch: Batch) -> None:
    names = {name.removeprefix("model.") for name, p in module.named_parameters() if p.requires_grad}
    assert names == module.model.trained_names()  # type: ignore[operator]
    parts = {name.split(".")[0] for name in names}
    assert parts == {"decoder", "llama", "visual_query"}
    assert not any(name.startswith(("decoder.vae", "decoder.text_encoder", "clip")) for name in names)
    module.zero_grad()
    losses = module.losses(batch)
    assert torch.allclose(losses["loss"], losses["loss_ddpm"] + losses["loss_text"])
    losses["loss"].backward()
    trained = dict(module.named_parameters())
    for name in ("model.decoder.unet.conv_in.weight", "model.llama.lm_head.extra"):
        gradient = trained[name].grad
        assert gradient is not None and float(gradient.abs().sum()) > 0, name
    module.zero_grad()


def test_it_trains_on_the_true_words_of_the_segment_that_is_drawn(module: VLMSDModule, batch: Batch) -> None:
    prompts = module.prompts(batch, torch.arange(len(batch)))
    drawn = [k for k, has in enumerate(batch.has_target.tolist()) if has]
    assert drawn
    for k in drawn:
        segments = view_of(batch.samples[k], batch.turns[k]).reply
        assert prompts[k] in {prompt_of(segment, "answer") for segment in segments}
    module.prompt = "caption"
    assert module.prompts(batch, torch.arange(len(batch))) != prompts
    module.prompt = "answer"


def test_the_prompt_is_what_was_said_and_the_caption_where_nothing_was() -> None:
    both, silent = Segment("look !", "a ring"), Segment(" ", "a ring")
    assert (prompt_of(both, "answer"), prompt_of(both, "caption"), prompt_of(silent, "answer")) == (
        "look !", "a ring", "a ring",
    )  # fmt: skip


def test_its_pictures_follow_the_words_and_not_the_batch(module: VLMSDModule, batch: Batch) -> None:
    module.eval()
    replies, _ = module.generate(batch, "reply")
    alone, _ = module.generate(batch.select([0]), "reply")
    drawn = [image for reply in replies for image in reply.images if image is not None]
    assert drawn and all(image.shape == (32, 32, 3) for image in drawn)
    for ours, same in zip(replies[0].images, alone[0].images, strict=True):
        assert ours is None or same is None or abs(ours.astype(int) - same).max() <= 1
    protocol = module.protocol()
    assert protocol["prompt"] == "answer" and protocol["trainable_parameters"] > 100_000


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_pipeline_draws_captions_from_the_noise_that_ours_draws_from(
    micro: Any, batch: Batch, name: str, module: VLMSDModule
) -> None:
    backbone = micro.backbone()
    backbone.image_decoder = str(MICRO / name)
    pipeline = DiffusersModule(backbone=backbone, evaluation=FEW, negative="zeros")
    pipeline.configure_model()
    replies, _ = pipeline.generate(batch, "nothing")
    views = [view_of(sample, turn) for sample, turn in zip(batch.samples, batch.turns, strict=True)]
    for view, reply in zip(views, replies, strict=True):
        assert [s.caption for s in reply.segments] == [s.caption for s in view.reply if s.caption is not None]
        assert all(s.answer == "" for s in reply.segments) and len(reply.pictures) == len(reply.segments)
    if name == "sd15":  # the baseline before any training is the same network, drawn by our own loop
        module.prompt = "caption"
        told, _ = module.generate(batch, "caption")
        module.prompt = "answer"
        pairs = [
            (a, b) for x, y in zip(told, replies, strict=True) for a, b in zip(x.pictures, y.pictures, strict=True)
        ]
        assert pairs and max(abs(a.astype(int) - b).max() for a, b in pairs) <= 2
    with pytest.raises(UserError, match="trains nothing"):
        pipeline.configure_optimizers()


def test_known_replies_are_not_generated_again(module: VLMSDModule, batch: Batch, monkeypatch: Any) -> None:
    first = module.predict_replies(batch)
    asked: list[int] = []
    generate = module.generate
    monkeypatch.setattr(module, "generate", lambda part, given: asked.append(len(part)) or generate(part, given))
    module.recall({item.id: (item.generated, item.meta) for item in first[2:]})
    again = module.predict_replies(batch)
    module.recall({})
    assert sum(asked) == len({item.id for item in first[:2]} - {item.id for item in first[2:]})
    assert [item.id for item in again] == [item.id for item in first]
    assert [item.generated.segments for item in again] == [item.generated.segments for item in first]
