from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.checkpoints import load_trained, trainable_state_dict
from m2chat.models.config import NewLoraConfig
from m2chat.schema import Sample
from m2chat.text import view_of
from m2chat.training.config import OptimConfig
from m2chat.training.m3ft_module import M3FTModule


@pytest.fixture(scope="module")
def module(micro: Any) -> M3FTModule:
    made = micro.module("m3ft", phi=0.5, lambda_text=0.25)
    made.configure_model()
    return made


@pytest.fixture(scope="module")
def batch(micro: Any) -> Batch:
    return next(iter(micro.data("m3ft", batch_size=12).train_dataloader())).ready()


def test_the_loss_of_eq_7(module: M3FTModule, batch: Batch) -> None:
    losses, gate, cosine = module.losses(batch)
    assert set(losses) == {"loss", "loss_ddpm", "loss_align", "loss_text"}
    assert all(value > 0 for value in losses.values())
    total = losses["loss_ddpm"] + 0.5 * losses["loss_align"] + 0.25 * losses["loss_text"]
    assert torch.allclose(losses["loss"], total)
    assert gate.shape == cosine.shape == (12,)


def test_gradients_reach_gate_and_both_branches_and_nothing_frozen(module: M3FTModule, batch: Batch) -> None:
    assert bool((batch.has_context & batch.has_target).any()) and not bool(batch.has_target.all())
    module.zero_grad()
    module.losses(batch)[0]["loss"].backward()
    # The image branch starts silent: its last layers learn to speak first.
    for name in ("gate.slope", "gate.bias", "image_blocks.0.to_out.weight", "text_blocks.0.to_k.weight", "queries"):
        gradient = module.model.m3adapter.get_parameter(name).grad
        assert gradient is not None and float(gradient.abs().sum()) > 0, name
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad and p.grad is not None]
    assert frozen == []
    module.zero_grad()


def test_only_what_has_a_picture_is_drawn(module: M3FTModule, batch: Batch) -> None:
    with_picture = torch.nonzero(batch.has_target)[:, 0]
    noise = module.draw_noise(batch)
    assert torch.equal(noise.samples, with_picture) and len(noise.noise) == len(with_picture) < len(batch)
    text_only = batch.select(torch.nonzero(~batch.has_target)[:, 0].tolist())
    losses, _, _ = module.losses(text_only)
    # One is drawn all the same, and counts for nothing.
    assert len(module.draw_noise(text_only).samples) == 1
    assert losses["loss_ddpm"] == losses["loss_align"] == 0 and losses["loss_text"] > 0


def test_the_step_hands_on_gates_where_both_branches_meet(
    module: M3FTModule, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    output = module.training_step(batch, 0)
    count = int((batch.has_context & batch.has_target).sum())
    assert output["gate"].shape == output["cosine"].shape == (count,)
    assert bool((output["gate"] < 1).any()) and not output["gate"].requires_grad
    assert logged.keys() == {"train/loss", "train/loss_ddpm", "train/loss_align", "train/loss_text"}


def said(sample: Sample, turn: int, change: Callable[[str], str]) -> Sample:
    """The sample with other words in one reply."""
    reply = sample.turns[turn]
    parts = tuple(change(part) if isinstance(part, str) else part for part in reply.parts)
    return replace(sample, turns=(*sample.turns[:turn], replace(reply, parts=parts), *sample.turns[turn + 1 :]))


def drawn(sample: Sample, turn: int, caption: str) -> Sample:
    """The sample with another caption of the picture that one reply draws."""
    target = next(index for index in view_of(sample, turn).targets if index is not None)
    images = [replace(image, caption=caption) if k == target else image for k, image in enumerate(sample.images)]
    return replace(sample, images=tuple(images))


def test_the_target_follows_the_caption_and_never_the_answer(micro: Any, module: M3FTModule, batch: Batch) -> None:
    rows = [k for k, has in enumerate((batch.answer_mask.any(1) & batch.has_target).tolist()) if has][:3]
    pairs = [(batch.samples[k], batch.turns[k]) for k in rows]
    collate = micro.data("m3ft").collator

    def output(samples: list[Sample]) -> Any:
        made = collate([(sample, turn, None) for sample, (_, turn) in zip(samples, pairs, strict=True)])
        with torch.no_grad():
            return module.model(made, module.draw_noise(made))

    own = output([sample for sample, _ in pairs])
    answers = output([said(sample, turn, lambda words: words[::-1] + " and more") for sample, turn in pairs])
    assert torch.equal(answers.e_clip, own.e_clip) and torch.equal(answers.e_pclip, own.e_pclip)
    assert not torch.equal(answers.condition.h_align, own.condition.h_align)
    captions = output([drawn(sample, turn, "a large green ring") for sample, turn in pairs])
    assert not torch.equal(captions.e_clip, own.e_clip) and not torch.equal(captions.e_pclip, own.e_pclip)


@pytest.mark.filterwarnings("ignore")
def test_stage_2_starts_from_the_newest_stage_1(micro: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = {"checkpoint_root": str(tmp_path), "shipped": str(tmp_path / "shipped")}
    with pytest.raises(UserError, match=r"no finished checkpoint of stage 'align'.*shipped.*init_args\.init_from"):
        micro.module("m3ft", init_from="auto", **folders).configure_model()
    path = tmp_path / "deep" / "first.ckpt"
    run = micro.fit("align", tmp_path, 1, save=(1, path))
    made = micro.module("m3ft", init_from="auto", **folders)
    made.configure_model()
    assert made.source == str(path)
    assert f"Starting from the weights of {path}" in caplog.text
    parameters = dict(made.model.named_parameters())
    learned = trainable_state_dict(run.module.model)
    assert len(learned) > 40
    assert all(torch.equal(parameters[name], tensor) for name, tensor in learned.items())
    with pytest.raises(UserError, match=r"there is no checkpoint file nowhere\.ckpt"):
        micro.module("m3ft", init_from="nowhere.ckpt").configure_model()


def test_what_stage_1_has_trained_counts_as_trained(micro: Any, tmp_path: Path) -> None:
    path = tmp_path / "stage1.ckpt"
    before = micro.fit("align", tmp_path, 1, save=(1, path))
    module = micro.module("m3ft", init_from=str(path))
    module.configure_model()
    assert before.module.tasks == module.tasks == {"caption"}


def test_stage_2_learns_further_from_its_own_weights_while_early_layers_stay(micro: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    micro.fit("m3ft", tmp_path, 1, save=(1, first))
    optim = OptimConfig(lr=1e-3, lr_gates=1e-2, weight_decay=0.1, frozen_layers=1)
    micro.fit("m3ft", tmp_path, 2, save=(2, second), init_from=str(first), optim=optim)
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    assert before.keys() == after.keys(), "tensors that stay belong to the stage's checkpoints too"
    early = {name for name in after if name.startswith("model.llama.model.layers.0.")}
    assert len(early) > 5 and all(torch.equal(before[name], after[name]) for name in early)
    moved = {name for name in after.keys() - early if not torch.equal(before[name], after[name])}
    assert any(name.startswith("model.llama.model.layers.1.") for name in moved)
    assert any(name.startswith("model.m3adapter.") for name in moved)
    module, data = micro.module("m3ft", optim=optim), micro.data("m3ft")
    module.configure_model()
    module.losses(next(iter(data.train_dataloader())).ready())[0]["loss"].backward()
    layers, table = module.model.llama.model.layers, module.model.llama.model.embed_tokens.extra
    assert table.grad is None and all(parameter.grad is None for parameter in layers[0].parameters())
    assert layers[1].mlp.down_proj.bias.grad.any()
    with pytest.raises(UserError, match="stage 'm3ft', but stage 'align' is wanted"):
        micro.module("align", init_from=str(first)).configure_model()


def test_stage_2_adds_low_rank_updates_to_weights_without_them(micro: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    micro.fit("m3ft", tmp_path, 1, save=(1, first))
    backbone = replace(micro.backbone(), new_lora=NewLoraConfig(rank=2, layers=1))
    micro.fit("m3ft", tmp_path, 2, save=(2, second), init_from=str(first), backbone=backbone)
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    added = after.keys() - before.keys()
    assert before.keys() < after.keys()
    assert {name.rpartition(".")[2] for name in added} == {"lora_A", "lora_B", "adapter_new_gate"}
    assert all(".layers.3." in name for name in added)
    assert all(after[name].any() for name in added)
    module = micro.module("m3ft", init_from=str(second))
    with pytest.raises(
        UserError,
        match=r"does not hold the \d+ tensors .* 15 unexpected .*set backbone\.new_lora as in the config",
    ):
        module.configure_model()
    module = micro.module("m3ft", backbone=backbone, init_from=str(first))
    module.configure_model()  # a training starts from it, and an evaluation does not
    names = {f"model.{name}" for name in module.names_of("m3ft")}
    with pytest.raises(UserError, match=r"does not hold .* 15 missing .*set backbone\.new_lora to null"):
        load_trained(module, first, names, stage="m3ft", backbones=None)
    wider = replace(backbone, new_lora=NewLoraConfig(rank=3, layers=1))
    module = micro.module("m3ft", backbone=wider, init_from=str(first))
    module.configure_model()
    with pytest.raises(UserError, match=r"lora_[AB] has shape .* the model wants .* as in the config\.yaml"):
        module.on_load_checkpoint(torch.load(second, weights_only=True))
