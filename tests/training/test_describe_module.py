"""Stage 0: a new adapter learns to describe pictures, and becomes a file that names its language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import network, write_fast
from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.build import load_language
from m2chat.models.config import NewAdapterConfig
from m2chat.models.weights.adapter import open_adapter
from m2chat.text import DESCRIBE, Layout, M2ChatTokenizer, view_of
from m2chat.text.describing import as_description
from m2chat.training.config import EvalConfig, OptimConfig

STEPS = 40


@pytest.mark.filterwarnings("ignore")
def test_it_learns_and_leaves_an_adapter_file(micro: Any, tmp_path: Path) -> None:
    kept, path = tmp_path / "kept.ckpt", tmp_path / "adapter.pth"
    fast = OptimConfig(lr=3e-3, lr_language=3e-2)
    run = micro.fit("describe", tmp_path, STEPS, save=(STEPS, kept), optim=fast)
    losses = [step["train/loss"] for step in run.losses]
    assert len(losses) == STEPS and sum(losses[-5:]) < 0.75 * sum(losses[:5]), losses
    model = run.module.model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == adapter_parameter_names(model.llama, model.visual_query)
    gates = [float(layer.self_attn.adapter_gate.abs().max()) for layer in model.llama.model.layers]
    assert gates[0] == 0 and all(gates[1:]), "open but for the layer without prompts"

    opened = open_adapter(path, "x")
    assert opened.base is not None and opened.variant == "bias" and opened.channel_order == "rgb"
    loaded = load_language(replace(micro.backbone(), adapter=str(path)))
    for ours, theirs in zip((model.llama, model.visual_query), loaded, strict=True):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    # The same file out of a checkpoint, for a run that was stopped.
    assert main(["weights", "convert", str(kept), str(tmp_path / "again.safetensors")]) == 0
    again = open_adapter(tmp_path / "again.safetensors", "x")
    assert again.base == opened.base and again.state.keys() == opened.state.keys()
    assert all(torch.equal(value, opened.state[name]) for name, value in again.state.items())
    assert main(["weights", "check", str(path), "--with", micro.backbone().language_model, "--no-hash"]) == 0
    with pytest.raises(UserError, match="is a checkpoint of stage 0, whose result is an adapter file"):
        from m2chat.pipeline.weights import load_weights

        load_weights(kept)


@pytest.mark.parametrize("variant", ["caption", "lora-bias"])
@pytest.mark.filterwarnings("ignore")
def test_every_variant_on_a_base_with_grouped_heads_and_a_tied_table(micro: Any, tmp_path: Path, variant: str) -> None:
    base = network(400, kv_heads=2, head_dim=20, tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    write_fast(tmp_path / "base")
    rank = 2 if variant == "lora-bias" else 0
    new = NewAdapterConfig(prompts=4, layers=2, visual_blocks=1, visual_heads=4, biases=bool(rank), lora_rank=rank)
    own = replace(micro.backbone(), language_model=str(tmp_path / "base"))
    path = tmp_path / "a.safetensors"
    started = replace(own, adapter="new", new_adapter=new)
    run = micro.fit("describe", tmp_path, 3, backbone=started, adapter_file=str(path))
    opened = open_adapter(path, "x")
    assert opened.variant == variant and opened.base is not None and opened.base.kv_heads == 2
    assert (opened.shape.layers, opened.shape.visual_heads, opened.shape.lora_rank) == (2, 4, rank)
    if variant == "caption":
        assert not any("bias" in name or "norm" in name for name in opened.state if name.startswith("llama."))
    llama, _ = load_language(replace(own, adapter=str(path)))
    state = run.module.model.llama.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in llama.state_dict().items())
    frozen = base.state_dict()
    assert all(torch.equal(state[name], frozen[name]) for name in frozen if "norm" not in name or not rank)
    assert main(["weights", "check", str(path), "--no-hash"]) == 0
    assert main(["weights", "check", str(path), "--no-hash", "--with", own.language_model]) == 0


def test_the_data_show_the_picture_and_ask_for_its_caption(micro: Any) -> None:
    batch = micro.data("describe").collator  # the prompt of chat's descriptions, so that training and use agree
    source = next(iter(micro.data("describe")._open("train")))
    sample, turn = as_description(source.read(0, 0), 1)
    view = view_of(sample, turn)
    assert view.request.instruction == DESCRIBE and not view.request.history and view.context == 0
    row = batch([(sample, turn, None)])
    tokens = M2ChatTokenizer(micro.backbone().language_model)
    prompt, _ = Layout(tokens, 8, 256).prompt(view.request, 100)
    assert row.input_ids[0, : len(prompt)].tolist() == prompt
    caption = source.read(0, 0).images[0].caption
    assert tokens.decode(row.labels[0][row.labels[0] >= 0].tolist()[:-1]).strip() == caption
    assert row.has_context.all() and not row.has_target.any() and row.context_pixels.abs().sum() > 0
    text_only = replace(source.read(0, 0), turns=(*sample.turns[:1], replace(sample.turns[1], parts=("Hello",))))
    assert as_description(text_only, 1) == (text_only, 1)


def test_replies_that_draw_are_refused_and_descriptions_are_generated(micro: Any) -> None:
    module, data = micro.module("describe", evaluation=EvalConfig(max_text_tokens=6)), micro.data("describe")
    module.configure_model()
    source = next(iter(data._open("train")))
    drawn = data.collator([(source.read(0, 0), 1, None)])
    with pytest.raises(UserError, match=r"the reply of sample 'caption/\d+' draws one: set `describe: true` of its"):
        module.losses(drawn)
    described = data.collator([(*as_description(source.read(0, n), 1), None) for n in range(3)])
    predictions = module.predict_replies(described)
    assert [p.reference.texts for p in predictions] == [[source.read(0, n).images[0].caption] for n in range(3)]
    assert all(p.generated.texts and not p.generated.pictures and p.context is not None for p in predictions)


@pytest.mark.slow
def test_it_names_held_out_pictures_as_well_as_the_shipped_adapter(tmp_path: Path) -> None:
    from m2chat.worlds.shapes.recipe.llama import train_adapter
    from m2chat.worlds.shapes.recipe.reader import load_reader, measure_language

    root = Path(__file__).parents[2] / "data" / "micro"
    for part in ("llama", "clip", "sdxl"):
        (tmp_path / part).symlink_to(root / part)
    train_adapter(tmp_path)
    shares = [measure_language(load_reader(at))["describes_colour_and_shape"] for at in (root, tmp_path)]
    assert shares[1] >= shares[0] - 0.05, shares
