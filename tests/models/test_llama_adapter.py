from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM

LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
}  # fmt: skip
PROMPTS, LAYERS = 3, 2


def adapter_llama(rank: int = 0, kv_heads: int = 4, **settings: Any) -> AdapterLlamaForCausalLM:
    """Every parameter random, so that no term can be missing unseen."""
    torch.manual_seed(0)
    numbers = {**LLAMA, "num_key_value_heads": kv_heads, **settings}
    config = AdapterLlamaConfig(adapter_len=PROMPTS, adapter_layers=LAYERS, lora_rank=rank, **numbers)
    model = AdapterLlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name or "new_gate" in name else 0))
    return model


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 42, (rows, length), generator=torch.Generator().manual_seed(1))


def picture(rows: int = 2) -> Tensor:
    return torch.randn(rows, PROMPTS, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_without_the_adapter_it_is_transformers_llama(attention: str, kv_heads: int) -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**LLAMA, num_key_value_heads=kv_heads, attn_implementation=attention)).eval()
    ours = AdapterLlamaForCausalLM(
        AdapterLlamaConfig(**LLAMA, num_key_value_heads=kv_heads, adapter_layers=LAYERS, attn_implementation=attention)
    ).eval()
    missing = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    added = ("bias", "adapter_gate", "adapter_query", "extra")
    assert all(name.endswith(added) for name in missing.missing_keys)
    ids = tokens() % 40
    with torch.no_grad():
        logits = ours(ids).logits
        torch.testing.assert_close(logits[..., :40], plain(ids).logits, atol=1e-6, rtol=0)
        assert not logits[..., 40:].any(), "the added rows are zeros before they are initialised"
        # A new adapter's gates are zero: pictures say nothing yet.
        torch.testing.assert_close(ours(ids, visual_query=picture().repeat(1, 4, 1)[:, :10]).logits, logits)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x: Tensor) -> Tensor:
    """(T, d): halves (a, b) at position t become (a cos - b sin, b cos + a sin)."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def slow_logits(model: AdapterLlamaForCausalLM, ids: Tensor, visual_query: Tensor) -> Tensor:
    """One sequence (T,) and its picture (K, D), head by head, from the equations of the method."""
    p = {name: value.double() for name, value in model.state_dict().items()}

    def linear(x: Tensor, name: str, lora: bool = True) -> Tensor:
        y = x @ p[f"{name}.weight"].T
        if f"{name}.bias" in p:
            y = y + p[f"{name}.bias"]
        if lora and f"{name}.lora_A" in p:
            y = y + (x @ p[f"{name}.lora_A"].T) @ p[f"{name}.lora_B"].T
        return y

    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    width, length = 32 // heads, len(ids)
    h = torch.cat([p["model.embed_tokens.weight"], p["model.embed_tokens.extra"]])[ids]
    for layer in range(3):
        at = f"model.layers.{layer}"
        attn = f"{at}.self_attn"
        x = rms_norm(h, p[f"{at}.input_layernorm.weight"])
        q, k, v = (linear(x, f"{attn}.{part}_proj") for part in "qkv")
        outputs = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            shared_head = head * kv_heads // heads
            shared = slice(shared_head * width, (shared_head + 1) * width)
            query, key = rotate(q[:, own]), rotate(k[:, shared])
            scores = query @ key.T / math.sqrt(width)
            scores = scores + torch.full((length, length), -math.inf, dtype=torch.double).triu(1)
            output = scores.softmax(-1) @ v[:, shared]
            if layer >= 3 - LAYERS:
                prompts = p[f"{attn}.adapter_query"] + visual_query.double()
                prompt_key = linear(prompts, f"{attn}.k_proj", lora=False)[:, shared]
                prompt_value = linear(prompts, f"{attn}.v_proj", lora=False)[:, shared]
                gate = torch.tanh(p[f"{attn}.adapter_gate"][head])
                if f"{attn}.adapter_new_gate" in p:
                    gate = gate * p[f"{attn}.adapter_new_gate"]
                output = output + gate * (query @ prompt_key.T / math.sqrt(width)).softmax(-1) @ prompt_value
            outputs.append(output)
        h = h + linear(torch.cat(outputs, -1), f"{attn}.o_proj")
        x = rms_norm(h, p[f"{at}.post_attention_layernorm.weight"])
        h = h + linear(F.silu(linear(x, f"{at}.mlp.gate_proj")) * linear(x, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    h = rms_norm(h, p["model.norm.weight"])
    return h @ torch.cat([p["lm_head.weight"], p["lm_head.extra"]]).T


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_pictures_it_follows_the_equations(rank: int, kv_heads: int, attention: str) -> None:
    model = adapter_llama(rank, kv_heads, attn_implementation=attention).double()
    ids, seen = tokens(), picture()
    with torch.no_grad():
        logits = model(ids, visual_query=seen.double()).logits
        expected = torch.stack([slow_logits(model, *row) for row in zip(ids, seen, strict=True)])
        assert (model(ids).logits - expected).abs().max() > 0.1, "the picture must matter here"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_cached_decoding_equals_a_whole_pass() -> None:
    model, ids, seen = adapter_llama(rank=4), tokens(), picture()
    with torch.no_grad():
        whole = model(ids, visual_query=seen).logits
        step = model(ids[:, :3], visual_query=seen, use_cache=True)
        logits = [step.logits]
        for position in range(3, ids.shape[1]):
            step = model(
                ids[:, position : position + 1],
                visual_query=seen,
                cache=step.cache,
                use_cache=True,
            )
            logits.append(step.logits)
    assert step.cache.get_seq_length() == ids.shape[1], "prompts never enter the cache"
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_sees_the_picture(beams: int) -> None:
    model, ids, seen = adapter_llama(), tokens(), picture()
    said = model.generate(
        ids, visual_query=seen, max_new_tokens=5, do_sample=False, num_beams=beams, pad_token_id=0, eos_token_id=None
    )
    assert said.shape == (2, 12)
    if beams == 1:
        expected = ids
        for _ in range(5):
            chosen = model(expected, visual_query=seen).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, chosen], 1)
        assert torch.equal(said, expected)


def gradients(model: AdapterLlamaForCausalLM) -> dict[str, Tensor]:
    seen = picture().requires_grad_()
    model.train()
    model.zero_grad()
    model(tokens(), visual_query=seen).logits.square().mean().backward()
    assert seen.grad is not None
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**own, "visual_query": seen.grad.clone()}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = adapter_llama(rank=4)
    plain = gradients(model)
    calls: list[None] = []
    model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: calls.append(None))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model)
    assert len(calls) == 2, "computed once, and once more for the backward pass"
    assert plain.keys() == again.keys()
    unused = {f"model.layers.{layer}.self_attn.adapter_{part}" for layer in range(1) for part in ("gate", "new_gate")}
    assert set(dict(model.named_parameters())) - set(plain) == unused, "only layers without prompts have idle gates"
    for name, gradient in plain.items():
        assert gradient.any()
        torch.testing.assert_close(again[name], gradient, msg=name)


def test_it_compiles_without_a_break() -> None:
    model = adapter_llama()
    compiled = torch.compile(model.model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model.model(tokens(), visual_query=picture(), use_cache=False).last_hidden_state
        got = compiled(tokens(), visual_query=picture(), use_cache=False).last_hidden_state
    torch.testing.assert_close(got, expected)


def test_added_tokens_have_rows_of_their_own() -> None:
    model = adapter_llama()
    model.init_extra_tokens()
    tables: tuple[Any, Any] = (model.model.embed_tokens, model.lm_head)
    for table in tables:
        assert table.weight.shape == (40, 32) and table.extra.shape == (2, 32)
        torch.testing.assert_close(table.extra, table.weight.mean(0).expand(2, -1))
        table.weight.requires_grad_(False)
    embedded = model.model.embed_tokens(torch.tensor([3, 40, 41]))
    torch.testing.assert_close(embedded[0], tables[0].weight[3])
    torch.testing.assert_close(embedded[1:], tables[0].extra)
    model(torch.tensor([[1, 40, 5, 41]])).logits[..., 40:].sum().backward()
    for table in tables:
        assert table.weight.grad is None and table.extra.grad.any()


def test_a_saved_folder_loads_again(tmp_path: Path) -> None:
    model = adapter_llama(rank=4)
    model.save_pretrained(tmp_path)
    again = AdapterLlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(tokens(), visual_query=picture()).logits, model(tokens(), visual_query=picture()).logits
        )


def test_bf16_training_gives_nearly_the_gradients_of_fp32() -> None:
    model, words, shown = adapter_llama(rank=2, kv_heads=2), tokens(), picture()

    def gradients() -> Tensor:
        model.zero_grad()
        model(words, visual_query=shown).logits.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):  # plain products in the place of fused attention
        lowered = gradients()
    assert F.cosine_similarity(exact, lowered, dim=0) > 0.999
