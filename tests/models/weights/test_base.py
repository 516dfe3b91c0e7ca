"""An adapter goes with the language model that it was made for, or says why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.models import published
from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig, NewAdapterConfig, NewLoraConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.weights.adapter import AdapterSource, open_adapter, write_adapter
from m2chat.models.weights.base import BaseMark, mark_fingerprint
from m2chat.models.weights.foreign import why_foreign
from m2chat.models.weights.llama import LlamaSource, open_llama
from m2chat.models.weights.new_adapter import save_adapter

MICRO = Path(__file__).parents[3] / "data" / "micro"


def other_llama(official: Any, root: Path) -> Path:
    """A language model of the same sizes with other weights."""
    generator = torch.Generator().manual_seed(7)
    own = official.llama()
    other = {name: t[..., torch.randperm(t.shape[-1], generator=generator)] for name, t in own.items()}
    official.write_meta(root, other)
    return root


def language(llama: Path, adapter: Path, **settings: Any) -> Any:
    return load_language(BackboneConfig(str(llama), str(adapter), "", "", 8, **settings))[0]


def marked(official: Any, llama: Path, path: Path, **change: Any) -> Path:
    base = replace(BaseMark.of(open_llama(llama, "x")), **change)
    write_adapter(path, official.adapter("bias"), base, "rgb", visual_heads=2)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_mark_names_the_language_model(
    official: Any, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    official.write_meta(tmp_path)
    other = other_llama(official, tmp_path / "other")
    adapter = marked(official, tmp_path, tmp_path / f"a{suffix}")
    opened, base = open_adapter(adapter, "x"), BaseMark.of(open_llama(tmp_path, "x"))
    assert opened.base == base and (base.width, base.layers, base.inner) == (64, 3, 96)
    tensors = official.adapter("bias")
    assert opened.state.keys() == tensors.keys()
    assert all(torch.equal(opened.state[name], tensors[name]) for name in tensors)
    accepted = language(tmp_path, adapter)
    message = rf"names the language model {base.fingerprint}, and this one is \w+: same sizes, other weights.*allow_for"
    with pytest.raises(UserError, match=message):
        language(other, adapter)
    with caplog.at_level(logging.WARNING):
        forced = language(other, adapter, allow_foreign_adapter=True)
    assert "was not made for the language model" in caplog.text
    norm = "model.norm.weight"
    assert torch.equal(forced.state_dict()[norm], accepted.state_dict()[norm]), "the adapter's norm, on another base"
    wrong = marked(official, tmp_path, tmp_path / f"w{suffix}", kv_heads=2)
    with pytest.raises(UserError, match="its mark names a language model of kv_heads 2 and not 4"):
        language(tmp_path, wrong)


def test_an_unmarked_adapter_is_known_by_its_norms(
    official: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    official.write_meta(tmp_path)
    other = other_llama(official, tmp_path / "other")
    adapter = official.write_adapter(tmp_path / "a.pth", "lora-bias")
    language(tmp_path, adapter)
    with pytest.raises(UserError, match=r"has no mark, and its norms are \d+ % away .* agree with them by -?0\.[012]"):
        language(other, adapter)
    with caplog.at_level(logging.WARNING):
        language(other, official.write_adapter(tmp_path / "c.pth", "caption"))
    assert "has neither a mark nor norms" in caplog.text


def test_the_fingerprint_is_one_of_numbers_whatever_their_precision_and_form(official: Any, tmp_path: Path) -> None:
    meta = open_llama(official.write_meta(tmp_path), "x").state
    wide = {name: tensor.float() for name, tensor in meta.items() if name != "lm_head.weight"}
    assert mark_fingerprint(meta) == mark_fingerprint(wide)
    one = "model.layers.2.mlp.up_proj.weight"
    changed = {**wide, one: wide[one] + 1e-3}
    assert mark_fingerprint(changed) != mark_fingerprint(wide)
    head = {"lm_head.weight": torch.zeros(1)}
    large = {"b": torch.arange(20000.0).view(2, -1), "a": torch.ones(3).half(), **head}
    assert mark_fingerprint(large) == "13ff387f1f713541", "the value that stands in files of users"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}, "rms_norm_eps 1e-05 where LLaMA-1 has 1e-06"),
        ({"vocab_size": 32001}, "vocab_size 32001 where LLaMA-1 has 32000"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8 where LLaMA-1 has 32"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta 500000.0 where LLaMA-1 has 10000.0"),
    ],
)
def test_published_files_fit_llama_1_and_nothing_else(change: dict[str, Any], reason: str | None) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    state = {f"llama.layers.{n}.attention.gate": empty(1, 32, 1, 1) for n in range(32)}
    caption = AdapterSource(
        {**state, "adapter_query.weight": empty(310, 4096)}, published.BIAS_7B, "bgr", False, []
    )  # without norms, so that the description alone decides
    found = why_foreign(LlamaSource({**published.LLAMA_7B, **change}, {}, [], "transformers", Path("x")), caption)
    assert (found is None) if reason is None else (found is not None and reason in found and "nothing else" in found)


@pytest.mark.parametrize(
    ("heads", "blocks", "given", "message"),
    [
        (None, None, {}, r"80 wide and does not state how many heads.*set backbone.visual_heads .*\(1, 2, 4, 5, 8, 10"),
        (4, None, {"visual_heads": 8}, "states 4 heads of its visual blocks, and backbone.visual_heads is 8"),
        (None, None, {"visual_heads": 7}, "80 wide, which 7 heads do not divide"),
        (4, 3, {}, "states 3 visual blocks and has 2"),
        (4, None, {"visual_blocks": 1}, "should have 1 visual blocks and has 2"),
    ],
)  # fmt: skip
def test_ambiguous_visual_blocks_are_refused(
    official: Any, tmp_path: Path, heads: int | None, blocks: int | None, given: dict[str, int], message: str
) -> None:
    tensors = official.adapter("bias")
    tensors["clip_proj.weight"] = torch.zeros(80, 96)
    config = {name: value for name, value in (("visual_heads", heads), ("visual_blocks", blocks)) if value}
    torch.save({"model": tensors, "config": config}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        open_adapter(tmp_path / "a.pth", "backbone.adapter", given.get("visual_heads"), given.get("visual_blocks"))


def test_heads_can_be_given_to_the_commands(
    official: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = official.adapter("bias")
    tensors["clip_proj.weight"] = torch.zeros(40, 96)
    torch.save({"model": tensors, "config": {}}, tmp_path / "a.pth")
    assert open_adapter(tmp_path / "a.pth", "x").shape.visual_heads == 1
    assert "40 wide, they are taken to have one: set backbone.visual_heads if that is wrong" in caplog.text
    tensors["clip_proj.weight"] = torch.zeros(80, 96)
    torch.save({"model": tensors, "config": {}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="does not state how many heads"):
        open_adapter(tmp_path / "a.pth", "x")
    arguments = ["weights", "convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors"), "--channel-order=rgb"]
    assert main(arguments) == 2 and "--visual-heads" in capsys.readouterr().err
    assert main([*arguments, "--visual-heads=4"]) == 0
    assert open_adapter(tmp_path / "a.safetensors", "x").shape.visual_heads == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("llama.layers.1.attention.wq.bias"), "missing.*layers.1.self_attn.q_proj.bias"),
        (lambda state: state.pop("llama.layers.2.attention.gate"), "missing.*layers.2.self_attn.adapter_gate"),
        (lambda state: state["llama.layers.1.attention.wo.bias"].fill_(float("nan")), "holds NaN .*layers.1.*wo.bias"),
    ],
)
def test_an_adapter_with_a_gap_is_refused(
    official: Any, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    official.write_meta(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in official.adapter("bias").items()}
    change(tensors)
    torch.save({"model": tensors, "config": {"visual_heads": 2}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        language(tmp_path, tmp_path / "a.pth")


def test_a_visual_encoder_of_another_width_than_clip_s(official: Any, tmp_path: Path) -> None:
    official.write_meta(tmp_path)
    tensors, wide = official.adapter("bias"), 128
    tensors["clip_proj.weight"] = torch.randn(96, wide)  # the tokens of a wider CLIP
    torch.save({"model": tensors, "config": {"visual_heads": 3}}, tmp_path / "a.pth")
    backbone = BackboneConfig(str(tmp_path), str(tmp_path / "a.pth"), "", "", 8)
    _, visual_query = load_language(backbone)
    assert visual_query.visual_blocks[0].heads == 3
    assert visual_query(torch.randn(2, 5, wide)).shape == (2, 3, 64)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_new_adapter_changes_nothing_and_is_always_the_same(official: Any, tmp_path: Path, rank: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    official.write_meta(tmp_path)
    sizes = NewAdapterConfig(prompts=3, layers=2, visual_blocks=2, visual_heads=4, lora_rank=rank)
    backbone = BackboneConfig(str(tmp_path), "new", str(MICRO / "clip"), "", 8, new_adapter=sizes)
    llama, visual_query = load_language(backbone)
    torch.rand(3)  # what else is drawn does not matter
    again = load_language(backbone)
    for one, two in zip((llama, visual_query), again, strict=True):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    source = open_llama(tmp_path, "x")
    plain = LlamaForCausalLM(LlamaConfig(**source.settings)).eval()
    plain.load_state_dict({name: tensor.float() for name, tensor in source.state.items()})
    ids = torch.randint(3, 50, (2, 7))
    query = visual_query(torch.randn(2, 5, 96))
    assert query.std() > 0.1 and len(llama.model.layers[2].self_attn.adapter_query) == 3
    with torch.no_grad():
        rows = source.settings["vocab_size"]  # behind them stand the added tokens
        assert torch.equal(llama(ids, visual_query=query).logits[..., :rows], plain(ids).logits)
    seeded = replace(backbone, new_adapter=replace(sizes, seed=1))
    assert Fingerprints(backbone).name != Fingerprints(seeded).name


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (None, r"needs the sizes of the adapter: set backbone\.new_adapter to its prompts"),
        ({"layers": 9}, r"new_adapter\.layers=9: the language model in .* has 4 layers; choose from 1 to 4"),
        ({"visual_heads": 7}, r"new_adapter\.visual_heads=7 does not divide 96"),
        ({"prompts": 0}, r"new_adapter\.prompts=0: give 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int] | None, message: str) -> None:
    given = {"prompts": 10, "layers": 3, "visual_blocks": 2, "visual_heads": 2, **(sizes or {})}
    with pytest.raises(UserError, match=message):
        new = None if sizes is None else NewAdapterConfig(**given)
        load_language(BackboneConfig(str(MICRO / "llama"), "new", str(MICRO / "clip"), "", 8, new_adapter=new))


def test_new_low_rank_updates_change_nothing_and_stand_in_the_last_layers_alone(official: Any, tmp_path: Path) -> None:
    official.write_meta(tmp_path)
    backbone = BackboneConfig(str(tmp_path), str(official.write_adapter(tmp_path / "a.pth", "bias")), "", "", 8)
    plain, visual_query = load_language(backbone)
    llama, _ = load_language(replace(backbone, new_lora=NewLoraConfig(rank=2, layers=2)))
    ranked = [layer.self_attn.k_proj.lora_A is not None for layer in llama.model.layers]
    assert ranked == [False, True, True]
    ids, query = torch.randint(3, 50, (2, 7)), visual_query(torch.randn(2, 5, 96))
    with torch.no_grad():
        assert torch.equal(llama(ids, visual_query=query).logits, plain(ids, visual_query=query).logits)
        llama.model.layers[2].mlp.down_proj.lora_B.fill_(0.1)
        assert not torch.equal(llama(ids, visual_query=query).logits, plain(ids, visual_query=query).logits)
    again, _ = load_language(replace(backbone, new_lora=NewLoraConfig(rank=2, layers=2)))
    assert torch.equal(again.model.layers[1].mlp.up_proj.lora_A, llama.model.layers[1].mlp.up_proj.lora_A)
    # An adapter file with updates in its last layers alone, as stage 0 writes it.
    trained = {f"llama.{name}": value for name, value in llama.state_dict().items()}
    trained |= {f"visual_query.{name}": value for name, value in visual_query.state_dict().items()}
    names = adapter_parameter_names(llama, visual_query)
    save_adapter(tmp_path / "b.pth", {name: trained[name] for name in names}, backbone)
    shape = open_adapter(tmp_path / "b.pth", "x").shape
    assert (shape.lora_rank, shape.lora_from) == (2, 1)
    read, _ = load_language(replace(backbone, adapter=str(tmp_path / "b.pth")))
    assert read.state_dict().keys() == llama.state_dict().keys()
    assert all(torch.equal(value, llama.state_dict()[name]) for name, value in read.state_dict().items())


@pytest.mark.parametrize(
    ("variant", "sizes", "message"),
    [
        ("lora-bias", {"rank": 2}, r"has low-rank updates of rank \d+ itself: leave backbone\.new_lora out"),
        ("bias", {"rank": 2, "layers": 9}, r"new_lora\.layers=9: the language model has 3 layers; choose from 1 to 3"),
        ("bias", {"rank": 0}, r"new_lora\.rank=0: give a whole number, 1 or more"),
        ("bias", {"rank": None}, r"new_lora\.rank=None: give a whole number"),
        ("new", {"rank": 2}, r"new_lora is for an adapter file .* set backbone\.new_adapter\.lora_rank"),
    ],
)
def test_low_rank_updates_that_do_not_fit_are_refused(
    official: Any, tmp_path: Path, variant: str, sizes: dict[str, int], message: str
) -> None:
    official.write_meta(tmp_path)
    adapter = "new" if variant == "new" else str(official.write_adapter(tmp_path / "a.pth", variant))
    new = NewAdapterConfig(prompts=3, layers=2, visual_blocks=2, visual_heads=4) if variant == "new" else None
    with pytest.raises(UserError, match=message):
        lora = NewLoraConfig(**sizes)
        load_language(BackboneConfig(str(tmp_path), adapter, "", "", 8, new_adapter=new, new_lora=lora))
