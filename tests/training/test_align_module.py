from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.decoder_config import DecoderConfig
from m2chat.text import Layout
from m2chat.training.align_module import AlignModule
from m2chat.training.noise import mention_few_steps


@pytest.fixture(scope="module")
def module(micro: Any) -> AlignModule:
    made = micro.module("align", phi=0.5)
    made.configure_model()
    return made


@pytest.fixture(scope="module")
def batch(micro: Any) -> Batch:
    return next(iter(micro.data("align").train_dataloader())).ready()


def test_the_layout_is_that_of_the_data_unless_evaluation_names_another(micro: Any, tmp_path: Path) -> None:
    module = micro.module("align")
    assert module.model_config()["layout"] == {
        "max_tokens": Layout.max_tokens, "num_image_tokens": 8, "prompt": "alpaca"
    }  # fmt: skip
    module.trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.datamodule = micro.data("align")  # type: ignore[attr-defined]
    assert module.model_config()["layout"]["max_tokens"] == module.evaluation_settings()["max_tokens"] == 256
    assert module.text_settings()[0].max_tokens == 256
    assert "prompt" not in module.evaluation_settings(), "results of before remain comparable"
    module.trainer.datamodule.prompt = "chat"  # type: ignore[attr-defined]
    assert module.model_config()["layout"]["prompt"] == module.evaluation_settings()["prompt"] == "chat"
    with pytest.raises(UserError, match=r"trained on prompts in the format 'alpaca', .* set data\.prompt to alpaca"):
        module.on_load_checkpoint({"config": {"layout": {"max_tokens": 256}}})
    module.trainer.datamodule.prompt = "alpaca"  # type: ignore[attr-defined]
    module.evaluation.max_tokens = 320
    assert module.text_settings()[0].max_tokens == module.evaluation_settings()["max_tokens"] == 320


def test_the_loss_of_eq_6(module: AlignModule, batch: Batch) -> None:
    losses = module.losses(batch)
    assert set(losses) == {"loss", "loss_ddpm", "loss_align"}
    assert losses["loss_ddpm"] > 0 and losses["loss_align"] > 0
    assert losses["loss"] == losses["loss_ddpm"] + 0.5 * losses["loss_align"]


def test_without_weight_l_ddpm_is_left_out_of_training_and_still_validated(
    module: AlignModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "lambda_ddpm", 0.0)
    module.eval()
    validated = module.losses(batch)
    assert validated["loss_ddpm"] > 0
    module.train()
    monkeypatch.setattr(module.model.decoder, "predict", None)
    trained = module.losses(batch)
    assert (
        set(trained) == {"loss", "loss_align"} and trained["loss"] == validated["loss"] == 0.5 * trained["loss_align"]
    )


def test_frozen_features_may_be_given(module: AlignModule, batch: Batch) -> None:
    features = module.model.frozen_features(batch)
    assert features.states is not None
    assert module.losses(batch, features) == module.losses(batch)
    zeros = replace(features, states=torch.zeros_like(features.states))
    assert module.losses(batch, zeros)["loss"] != module.losses(batch)["loss"]


def test_noise_belongs_to_seed_step_and_sample(
    micro: Any, module: AlignModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, alone = module.draw_noise(batch), module.draw_noise(batch.select([4, 1]))
    assert noise.noise.shape == (6, *noise.noise.shape[1:]) and noise.timesteps.shape == noise.drop.shape == (6,)
    assert torch.equal(noise.noise[[4, 1]], alone.noise) and torch.equal(noise.timesteps[[4, 1]], alone.timesteps)
    assert not torch.equal(noise.noise[0], noise.noise[1])
    monkeypatch.setattr(module, "seed", 1)
    assert not torch.equal(module.draw_noise(batch).noise, noise.noise)
    monkeypatch.undo()
    monkeypatch.setattr(AlignModule, "global_step", 1)
    assert not torch.equal(module.draw_noise(batch).noise, noise.noise)


def test_a_network_of_few_steps_is_asked_for_those_it_learned(
    micro: Any, module: AlignModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [int(step) for _ in range(4) for step in module.draw_noise(batch).timesteps]
    assert not set(every) <= {999, 749, 499, 249}
    monkeypatch.setattr(module.model.decoder, "config", DecoderConfig(preset="lightning-4"))
    monkeypatch.setattr(module, "ddpm_draws", 12)
    noise = module.draw_noise(batch)
    assert set(noise.timesteps.tolist()) == {999, 749, 499, 249} and torch.isfinite(module.losses(batch)["loss"])
    said: list[str] = []
    monkeypatch.setattr("m2chat.training.noise.rank_zero_info", said.append)
    mention_few_steps(module.model.decoder, module.lambda_ddpm)
    assert "L_ddpm draws only those (999, 749, 499, 249)" in said[0] and "lambda_ddpm=0" in said[0]
    mention_few_steps(module.model.decoder, 0.0)
    assert len(said) == 1


def test_ddpm_looks_at_the_first_samples_only(
    module: AlignModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first = module.losses(batch), module.losses(batch.select([0, 1]))
    monkeypatch.setattr(module, "ddpm_samples", 2)
    some = module.losses(batch)
    assert torch.allclose(some["loss_ddpm"], first["loss_ddpm"], rtol=1e-4)
    assert torch.equal(some["loss_align"], whole["loss_align"])


def test_dropped_conditions_reach_the_decoder_as_zeros(
    module: AlignModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient_of_ddpm() -> float:
        module.zero_grad()
        module.losses(batch)["loss_ddpm"].backward()
        return sum(float(p.grad.abs().sum()) for p in module.model.m3adapter.head.parameters() if p.grad is not None)

    monkeypatch.setattr(module, "drop_condition", 1.0)
    assert gradient_of_ddpm() == 0
    monkeypatch.setattr(module, "drop_condition", 0.0)
    assert gradient_of_ddpm() > 0
    module.zero_grad()


def test_samples_with_a_context_picture_are_refused(module: AlignModule, batch: Batch) -> None:
    has_context = torch.tensor([False, True] + [False] * 4)
    with pytest.raises(UserError, match=rf"'{batch.samples[1].id}' has a context picture.*kinds.*caption"):
        module.losses(replace(batch, has_context=has_context))
