from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from m2chat.errors import UserError
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.weights.adapter import open_adapter
from m2chat.models.weights.language import own_llama, reports, skeletons
from m2chat.models.weights.llama import open_llama


def language(llama: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    return load_language(BackboneConfig(str(llama), str(adapter), "", "", 8), dtype)


def write_transformers(official: Any, root: Path, folder: Path, old: bool = False) -> Path:
    """The same LLaMA as transformers saves it."""
    source = open_llama(official.write_meta(root), "x")
    network = LlamaForCausalLM(LlamaConfig(**source.settings))
    network.load_state_dict({name: tensor.float() for name, tensor in source.state.items()})
    network.half().save_pretrained(folder)
    if old:  # as older versions did: a pickle, with a table that can be computed
        (folder / "model.safetensors").unlink()
        table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
        torch.save({**network.state_dict(), **table}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("variant", ["bias", "lora-bias", "caption"])
def test_every_tensor_is_used_and_none_is_missing(official: Any, tmp_path: Path, variant: str) -> None:
    source = open_llama(official.write_meta(tmp_path), "x")
    adapter = open_adapter(official.write_adapter(tmp_path / "a.pth", variant), "x")
    assert adapter.variant == variant, "told by its keys, not by its config"
    plain, report, ours = reports(*skeletons(source, adapter), source, adapter, "x")
    for found in (plain, report):
        assert found.used and not found.missing and not found.unexpected and not found.misshapen
    assert len(report.used) == len(ours) == len(adapter.state) + official.sizes.with_prompts - 1, "the query is split"
    assert len(plain.ignored) == official.sizes.layers, "tables of the rotation"
    alone = reports(*skeletons(own_llama(adapter), adapter), own_llama(adapter), adapter, "x")[1]
    assert alone == report, "an adapter can be checked without its LLaMA"


@pytest.mark.parametrize("old", [False, True])
def test_meta_s_folder_and_transformers_folder_are_the_same(official: Any, tmp_path: Path, old: bool) -> None:
    adapter = official.write_adapter(tmp_path / "a.pth", "bias")
    folder = write_transformers(official, tmp_path / "meta", tmp_path / "hf", old)
    networks = [language(path, adapter) for path in (tmp_path / "meta", tmp_path / "meta" / "7B", folder)]
    states = [{**llama.state_dict(), **eye.state_dict()} for llama, eye in networks]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    assert networks[0][0].config.rms_norm_eps == official.sizes.eps, "Meta's own, not the code's default"
    assert networks[0][0].model.rotary_emb.inv_freq.device.type == "cpu"
    assert states[0]["model.embed_tokens.extra"].any(), "the added tokens start as the mean"


def test_frozen_weights_take_the_wanted_precision_and_the_adapter_stays_fp32(official: Any, tmp_path: Path) -> None:
    official.write_meta(tmp_path)
    llama, eye = language(tmp_path, official.write_adapter(tmp_path / "a.pth", "lora-bias"), torch.bfloat16)
    kinds: dict[torch.dtype, set[str]] = {}
    for name, parameter in llama.named_parameters():
        kinds.setdefault(parameter.dtype, set()).add(name)
    assert kinds.keys() == {torch.bfloat16, torch.float32}
    assert all(
        name.endswith(("proj.weight", "embed_tokens.weight", "lm_head.weight")) for name in kinds[torch.bfloat16]
    )
    assert all(parameter.dtype == torch.float32 for parameter in eye.parameters())


def test_what_a_file_lacks_changes_nothing(official: Any, tmp_path: Path) -> None:
    official.write_meta(tmp_path)
    llama, _ = language(tmp_path, official.write_adapter(tmp_path / "a.pth", "caption"))
    state: dict[str, Tensor] = llama.state_dict()
    assert not state["model.layers.1.mlp.gate_proj.bias"].any(), "biases start at zero and may be trained"
    own = official.llama()["layers.1.attention_norm.weight"].half().float()
    assert torch.equal(state["model.layers.1.input_layernorm.weight"], own), "norms stay LLaMA's"


def test_a_full_training_checkpoint_is_an_adapter_too(official: Any, tmp_path: Path) -> None:
    from argparse import Namespace

    official.write_meta(tmp_path)
    adapter = official.adapter("bias")
    released = official.write_adapter(tmp_path / "released.pth", "bias")
    base = {f"llama.{name}": value.half() for name, value in official.llama().items() if "norm" not in name}
    whole = {**base, **adapter, **{f"clip.{name}": value for name, value in official.clip().items()}}
    typo = {name.replace("llama.", "llma.", 1) if "wq.bias" in name else name: value for name, value in whole.items()}
    torch.save(
        {"model": typo, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}, "args": Namespace(lr=0.1)},
        tmp_path / "checkpoint-3.pth",
    )
    opened = open_adapter(tmp_path / "checkpoint-3.pth", "x")
    assert opened.is_training_checkpoint and opened.state.keys() == adapter.keys()
    assert len(opened.ignored) == len(base) + len(official.clip())
    ours, theirs = (language(tmp_path, path)[0].state_dict() for path in (released, tmp_path / "checkpoint-3.pth"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_adapter_without_gates_is_warned_about(
    official: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    official.write_meta(tmp_path)
    state = {name: value for name, value in official.adapter("bias").items() if "gate" not in name}
    torch.save({"model": state}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        llama, _ = language(tmp_path, tmp_path / "a.pth")
    assert "has no gates, so pictures will say nothing" in caplog.text
    assert not llama.model.layers[1].self_attn.adapter_gate.any()


def test_13b_is_told_from_7b(official: Any, tmp_path: Path) -> None:
    adapter = official.write_adapter(tmp_path / "BIAS-7B.pth", "bias")
    folder = official.write_meta(tmp_path)
    torch.save({}, folder / "consolidated.01.pth")
    with pytest.raises(UserError, match=r"7B is split over 2 model-parallel files.*13B and larger.*use the 7B folder"):
        language(tmp_path, adapter)
    wide = {"model_type": "llama", "vocab_size": 50, "hidden_size": 80, "intermediate_size": 96,
            "num_hidden_layers": 5, "num_attention_heads": 5}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**wide)).save_pretrained(tmp_path / "hf")
    message = r"BIAS-7B\.pth' does not fit the language model in .*hf: it was trained for width 64.*has width 80 and 5"
    with pytest.raises(UserError, match=message):
        language(tmp_path / "hf", adapter)


def test_a_wrong_llama_says_what_was_expected(official: Any, tmp_path: Path) -> None:
    adapter = official.write_adapter(tmp_path / "a.pth", "bias")
    with pytest.raises(UserError, match=r"backbone\.language_model='.*nowhere': expected is a folder, but it does not"):
        language(tmp_path / "nowhere", adapter)
    with pytest.raises(UserError, match=r"a\.pth': expected is a folder, but it is a file\. Give Meta's folder"):
        language(adapter, adapter)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"describes a 'bert' network; expected is 'llama'"):
        language(tmp_path / "bert", adapter)
    folder = official.write_meta(tmp_path / "m")
    torch.save({"other": torch.zeros(1)}, folder / "consolidated.00.pth")
    with pytest.raises(
        UserError, match=r"consolidated\.00\.pth lacks 'tok_embeddings\.weight': it is not Meta's LLaMA"
    ):
        language(folder, adapter)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(UserError, match=r"there is no .*consolidated\.00\.pth"):
        language(folder, adapter)
    (folder / "params.json").write_text("{}")
    torch.save(official.llama(), folder / "consolidated.00.pth")
    with pytest.raises(UserError, match=r"params\.json lacks 'n_heads': copy Meta's file"):
        language(folder, adapter)


def test_missing_and_unexpected_tensors_are_counted_and_named(official: Any, tmp_path: Path) -> None:
    adapter = official.write_adapter(tmp_path / "a.pth", "bias")
    tensors = official.llama()
    lost = tensors.pop("layers.1.attention.wk.weight")
    official.write_meta(tmp_path, {**tensors, "layers.1.attention.wz.weight": lost})
    message = (
        r"language_model='.*1 missing \(model\.layers\.1\.self_attn\.k_proj\.weight\); 1 unexpected \(layers\.1\.att"
    )
    with pytest.raises(UserError, match=message):
        language(tmp_path, adapter)


def test_a_wrong_adapter_says_what_was_expected(official: Any, tmp_path: Path) -> None:
    official.write_meta(tmp_path)
    state = official.adapter("bias")
    with pytest.raises(UserError, match=r"there is no .*nowhere\.pth\. The setting names a LLaMA-Adapter V2 file"):
        language(tmp_path, tmp_path / "nowhere.pth")
    path = tmp_path / "a.pth"
    torch.save({"epoch": 1}, path)
    with pytest.raises(
        UserError, match=r"a\.pth is not a LLaMA-Adapter file: expected is \{'model'.*found \['epoch'\]"
    ):
        language(tmp_path, path)
    torch.save({"model": {"adapter_query.weight": state["adapter_query.weight"]}}, path)  # V1, or the text-only one
    with pytest.raises(UserError, match=r"not a LLaMA-Adapter V2 multimodal file: it lacks visual_query\.weight, clip"):
        language(tmp_path, path)
    torch.save({"model": {**state, "llama.layers.0.attention.wz.bias": torch.zeros(3)}}, path)
    with pytest.raises(UserError, match=r"a\.pth'.*unknown layer tensor 'attention\.wz\.bias'"):
        language(tmp_path, path)
    torch.save({"model": {name: value for name, value in state.items() if "blocks.1.norm1.bias" not in name}}, path)
    with pytest.raises(UserError, match=r"1 missing \(visual_query\.visual_blocks\.1\.norm1\.bias\)"):
        language(tmp_path, path)
    torch.save({"model": {**state, "llama.norm.weight": torch.ones(3)}}, path)
    with pytest.raises(
        UserError, match=r"1 of another shape \(llama\.model\.norm\.weight is \(3,\) and should be \(64,"
    ):
        language(tmp_path, path)


def test_a_marked_adapter_decides_the_channel_order(official: Any, backbone: BackboneConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    from m2chat.models.build import load_clip

    save_file(official.adapter("bias"), tmp_path / "a.safetensors", metadata={"channel_order": "bgr"})
    marked = replace(backbone, adapter=str(tmp_path / "a.safetensors"))
    assert load_clip(marked).channel_order == "bgr" and load_clip(backbone).channel_order == "rgb"
    save_file(official.adapter("bias"), tmp_path / "b.safetensors", metadata={"channel_order": "cmyk"})
    with pytest.raises(UserError, match=r"marked channel_order='cmyk'; known are 'rgb' and 'bgr'"):
        load_clip(replace(backbone, adapter=str(tmp_path / "b.safetensors")))


def test_notes_of_downloaders_do_not_change_the_fingerprint(official: Any, tmp_path: Path) -> None:
    folder = official.write_meta(tmp_path)
    adapter = str(official.write_adapter(tmp_path / "a.pth", "bias"))
    before = Fingerprints(BackboneConfig(str(tmp_path), adapter, "", "", 8)).name
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.json").write_text("today")
    (tmp_path / "13B").mkdir()
    (tmp_path / "13B" / "params.json").write_text("{}")
    assert Fingerprints(BackboneConfig(str(tmp_path), adapter, "", "", 8)).name == before
    assert Fingerprints(BackboneConfig(str(folder), adapter, "", "", 8)).name == before
