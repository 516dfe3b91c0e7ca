from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from m2chat.models.adapter_file import (
    AdapterShape,
    adapter_parameter_names,
    from_official,
    permute,
    read_shape,
    to_official,
)
from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM
from m2chat.models.visual_encoder import VisualQueryEncoder

HEADS, LAYERS, WIDTH, CLIP, PROMPTS = 4, 3, 32, 48, 4


def modules(rank: int = 0, kv_heads: int = HEADS) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    torch.manual_seed(0)
    config = AdapterLlamaConfig(
        vocab_size=20, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads, adapter_len=PROMPTS, adapter_layers=2, lora_rank=rank,
    )  # fmt: skip
    encoder = VisualQueryEncoder(CLIP, WIDTH, PROMPTS, depth=2, heads=3, visual_width=12, visual_hidden=20)
    return AdapterLlamaForCausalLM(config), encoder


def parameters_of(llama: nn.Module, visual_query: nn.Module) -> dict[str, Tensor]:
    own = {f"llama.{name}": p for name, p in llama.named_parameters()}
    return own | {f"visual_query.{name}": p for name, p in visual_query.named_parameters()}


def adapter_state(rank: int = 0, kv_heads: int = HEADS) -> dict[str, Tensor]:
    llama, visual_query = modules(rank, kv_heads)
    everything = parameters_of(llama, visual_query)
    names = adapter_parameter_names(llama, visual_query)
    return {name: torch.randn_like(everything[name]) for name in names}


def official_names(layers: int, blocks: int) -> set[str]:
    """As the method's own BIAS files hold them."""
    both = ("weight", "bias")
    names = {
        f"{part}.{kind}" for part in ("clip_proj", "clip_proj_norm", "visual_proj", "visual_proj_norm") for kind in both
    }
    names |= {"visual_query.weight", "adapter_query.weight", "llama.norm.weight"}
    for block in range(blocks):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            names |= {f"visual_blocks.{block}.{part}.{kind}" for kind in both}
    for layer in range(layers):
        own = ("attention.gate", "attention.wq.bias", "attention.wo.bias", "attention_norm.weight", "ffn_norm.weight")
        names |= {f"llama.layers.{layer}.{name}" for name in own}
        names |= {f"llama.layers.{layer}.feed_forward.w{k}.bias" for k in (1, 2, 3)}
    return names


def test_there_and_back() -> None:
    ours = adapter_state()
    official = to_official(ours, HEADS)
    assert set(official) == official_names(LAYERS, 2)
    assert official["adapter_query.weight"].shape == (2 * PROMPTS, WIDTH)
    assert official["llama.layers.0.attention.gate"].shape == (1, HEADS, 1, 1)
    again = from_official(official, HEADS, LAYERS)
    assert set(again) == set(ours) and all(torch.equal(again[name], ours[name]) for name in ours)
    twice = to_official(again, HEADS)
    assert set(twice) == set(official) and all(torch.equal(twice[name], official[name]) for name in official)


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("variant", ["bias", "lora-bias", "caption"])
def test_every_variant_goes_there_and_back_bit_for_bit(variant: str, kv_heads: int) -> None:
    ours = adapter_state(rank=3 if variant == "lora-bias" else 0, kv_heads=kv_heads)
    if variant == "caption":
        ours = {
            name: tensor for name, tensor in ours.items()
            if name.startswith("visual_query.") or not name.endswith(("_proj.bias", "norm.weight"))
        }  # fmt: skip
    official = to_official(ours, HEADS, kv_heads)
    again = from_official(official, HEADS, LAYERS, kv_heads)
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours)
    if variant == "lora-bias":
        kinds = {name.split(".", 3)[3] for name in official if name.startswith("llama.layers.1.")}
        lora = {f"attention.lora_w{k}_l{n}.weight" for k in "qkvo" for n in (1, 2)}
        assert lora | {f"feed_forward.lora_w{k}_l{n}.weight" for k in (1, 2, 3) for n in (1, 2)} <= kinds
        assert official["llama.layers.1.attention.new_gate"].shape == (1, 1, 1, 1)
        key = "attention.lora_wk_l2.weight"
        rows = WIDTH // HEADS * kv_heads
        assert official[f"llama.layers.1.{key}"].shape == (rows, 3), "as many as the keys have"


def test_prompts_belong_to_the_last_layers() -> None:
    ours = from_official(to_official(adapter_state(), HEADS), HEADS, LAYERS)
    layers = {int(match.group(1)) for name in ours if (match := re.search(r"layers\.(\d+).*adapter_query", name))}
    assert layers == {1, 2}


def test_shape_is_read_from_the_tensors() -> None:
    official = to_official(adapter_state(rank=5), HEADS)
    shape = read_shape(official, visual_heads=3)
    assert shape == AdapterShape(
        prompts=PROMPTS, layers=2, visual_depth=2, visual_width=12, visual_hidden=20, visual_heads=3, clip_width=CLIP,
        bias=True, lora_rank=5,
    )  # fmt: skip
    plain = {name: tensor for name, tensor in official.items() if "lora" not in name and not name.endswith(".bias")}
    assert (read_shape(plain, 3).bias, read_shape(plain, 3).lora_rank) == (False, 0)


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        ({}, 5, "12 wide, which 5 heads do not divide"),
        ({"adapter_query.weight": torch.zeros(7, WIDTH)}, 3, "7 rows, which are no multiple of the 4"),
        ({"visual_blocks.3.norm1.bias": torch.zeros(12)}, 3, "end at number 3, and number 2 is missing"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(change: dict[str, Tensor], heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_shape({**to_official(adapter_state(), HEADS), **change}, heads)


def test_low_rank_names() -> None:
    ours = adapter_state(rank=3)
    official = to_official(
        {name: tensor for name, tensor in ours.items() if "lora" not in name and "new" not in name}, HEADS
    )
    query = torch.randn(WIDTH, 3)
    official |= {
        "llama.layers.1.attention.lora_wq_l1.weight": torch.ones(3, WIDTH),
        "llama.layers.1.attention.lora_wq_l2.weight": query,
        "llama.layers.1.feed_forward.lora_w2_l2.weight": query,
        "llama.layers.1.attention.new_gate": torch.ones(1, 1, 1, 1),
    }
    named = from_official(official, HEADS, LAYERS)
    assert set(named) <= set(ours) and all(named[name].shape == ours[name].shape for name in named)
    assert torch.equal(named["llama.model.layers.1.self_attn.q_proj.lora_B"], permute(query, HEADS))
    assert torch.equal(named["llama.model.layers.1.mlp.down_proj.lora_B"], query)


@pytest.mark.parametrize("name", ["other.weight", "llama.layers.0.attention.wz.bias"])
def test_unknown_tensors_are_refused(name: str) -> None:
    with pytest.raises(KeyError, match="unknown"):
        from_official({name: torch.zeros(2)}, HEADS, LAYERS)


def interleaved(x: Tensor, heads: int) -> Tensor:
    """LLaMA's own rotation of (T, D): neighbouring channels are the two parts of a complex number."""
    pairs = torch.view_as_complex(x.unflatten(-1, (heads, -1, 2)).contiguous())
    half = pairs.shape[-1]
    angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)  # (T, H, d)


def test_permuted_rows_rotate_as_the_original_ones() -> None:
    torch.manual_seed(0)
    heads, width, length = 3, 24, 6
    x, wq, wk, bias = torch.randn(length, width), *torch.randn(2, width, width), torch.randn(width)
    query, key = interleaved(x @ wq.T + bias, heads), interleaved(x @ wk.T, heads)
    expected = torch.einsum("thd,shd->hts", query, key)

    half = width // heads // 2
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cosines, sines = (torch.cat([part, part], -1)[None] for part in (angles.cos(), angles.sin()))
    projected: list[Any] = [x @ permute(wq, heads).T + permute(bias, heads), x @ permute(wk, heads).T]
    shaped = [y.unflatten(-1, (heads, -1)).transpose(0, 1)[None] for y in projected]
    ours = apply_rotary_pos_emb(*shaped, cosines, sines)
    torch.testing.assert_close((ours[0] @ ours[1].transpose(-1, -2))[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(permute(permute(wq, heads), heads, inverse=True), wq)
    unpermuted = [y.unflatten(-1, (heads, -1)).transpose(0, 1)[None] for y in (x @ wq.T + bias, x @ wk.T)]
    wrong = apply_rotary_pos_emb(*unpermuted, cosines, sines)
    assert ((wrong[0] @ wrong[1].transpose(-1, -2))[0] - expected).abs().max() > 1


def test_counts_at_7b() -> None:
    with torch.device("meta"):
        config = AdapterLlamaConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
        )
        llama, visual_query = AdapterLlamaForCausalLM(config), VisualQueryEncoder(768, 4096)
    everything = parameters_of(llama, visual_query)
    adapter = adapter_parameter_names(llama, visual_query)
    assert sum(everything[name].numel() for name in adapter) == 63_095_552
    rows = {name for name in everything if name.endswith(".extra")}
    assert sum(everything[name].numel() for name in rows) == 16_384 and not rows & adapter
    rest = sum(p.numel() for name, p in everything.items() if name not in adapter | rows)
    assert rest == 6_738_149_376, "LLaMA itself"
    assert not any("gate_proj.weight" in name for name in adapter)
