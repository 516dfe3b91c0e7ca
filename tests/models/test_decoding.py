"""Decoding with kept keys and values beside whole passes of the same model, all of whose parameters are random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2chat.models.decoding import ReplyCache, joined
from m2chat.models.layouts import _side_by_side
from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM

LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "adapter_len": 3, "adapter_layers": 2,
}  # fmt: skip
LAYERS = (-1, 0, 2)
PARTS = (6, 1, 1, 3, 1, 150, 1)
"""Tokens of each pass: a prompt, single tokens, slots of a picture, and more than the first memory has room for."""


def random_llama(**settings: Any) -> AdapterLlamaForCausalLM:
    torch.manual_seed(0)
    model = AdapterLlamaForCausalLM(AdapterLlamaConfig(**{**LLAMA, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name or "new_gate" in name else 0))
    return model


def side_by_side(model: AdapterLlamaForCausalLM) -> None:
    for layer in model.model.layers:
        _side_by_side([getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"])
        _side_by_side([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "added_from": 43},
        {"num_key_value_heads": 2, "lora_rank": 4},
        {"num_key_value_heads": 1, "adapter_bias": False, "adapter_layers": 0, "head_dim": 16},
    ],
    ids=["plain", "tied", "lora", "no adapter"],
)
@pytest.mark.parametrize("is_laid_out", [False, True])
@torch.inference_mode()
def test_decoding_equals_a_whole_pass(settings: dict[str, Any], is_laid_out: bool) -> None:
    model, generator = random_llama(**settings), torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (2, sum(PARTS)), generator=generator)
    seen = torch.randn(2, 3, 32, generator=generator)
    padding = [0, 4]
    wanted = [
        model(ids[row : row + 1, start:], visual_query=seen[row : row + 1], output_hidden_states=True)
        for row, start in enumerate(padding)
    ]
    if is_laid_out:
        side_by_side(model)
    assert ReplyCache.fits(model)
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(padding)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for rows in ([0, 1], [0]):  # with padding and without
        cache, end, logits = ReplyCache(model, LAYERS), 0, []
        for length in PARTS:
            end += length
            new = slice(end - length, end)
            output = model(
                input_ids=ids[rows, new], attention_mask=mask[rows, :end], position_ids=positions[rows, new],
                cache=cache, use_cache=True, visual_query=seen[rows], logits_to_keep=1,
            )  # fmt: skip
            logits.append(output.logits)
        assert (cache._qkv[0].weight is not None) == (is_laid_out and "lora_rank" not in settings)
        states = torch.cat(cache.states, 2)
        last = torch.tensor(PARTS).cumsum(0) - 1
        for row in rows:
            start, whole = padding[row], wanted[row]
            torch.testing.assert_close(torch.cat(logits, 1)[row], whole.logits[0, last - start], atol=1e-4, rtol=1e-4)
            for place, layer in enumerate(LAYERS):
                torch.testing.assert_close(
                    states[place, row, start:], whole.hidden_states[layer][0], atol=1e-4, rtol=1e-4
                )


def test_matrices_are_joined_only_where_they_lie_side_by_side() -> None:
    parts = [nn.Parameter(torch.randn(rows, 5)) for rows in (3, 2, 4)]
    values = torch.cat([part.detach() for part in parts])
    assert joined(parts) is None
    _side_by_side(parts)
    whole = joined(parts)
    assert whole is not None and torch.equal(whole, values) and whole.data_ptr() == parts[0].data_ptr()
    with torch.no_grad():
        parts[1].fill_(7)
    assert (whole[3:5] == 7).all(), "it is the same memory, so that a changed weight counts"
    assert joined(parts[::-1]) is None and joined([parts[0], parts[2]]) is None
    parts[1].data = torch.zeros(2, 5)  # as pretrained tensors are put in place for a while
    assert joined(parts) is None


def test_where_layers_are_gathered_for_their_call_they_are_called() -> None:
    model = random_llama()
    seen: list[Tensor] = []
    model.model.layers[1].register_forward_pre_hook(lambda *_: seen.append(torch.zeros(())))
    assert not ReplyCache.fits(model)
    stretched = random_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert not ReplyCache.fits(stretched)


@torch.inference_mode()
def test_decoding_in_mixed_precision() -> None:
    model, ids, seen = random_llama(num_key_value_heads=2), torch.arange(1, 11)[None], torch.randn(1, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(ids, visual_query=seen).logits[:, -1]
        cache = ReplyCache(model)
        for end in (8, 9, 10):
            new = slice(0 if end == 8 else end - 1, end)
            output = model(
                input_ids=ids[:, new], attention_mask=torch.ones(1, end), position_ids=torch.arange(end)[None, new],
                cache=cache, visual_query=seen,
            )  # fmt: skip
    torch.testing.assert_close(output.logits[:, -1].float(), wanted.float(), atol=0.05 * float(wanted.std()), rtol=0.05)


@torch.inference_mode()
def test_weights_may_move_until_the_model_is_called() -> None:
    model, ids, seen = random_llama(), torch.arange(1, 11)[None], torch.randn(1, 3, 32)
    side_by_side(model)
    wanted, cache = model(ids, visual_query=seen).logits[:, -1], ReplyCache(model)

    def move(*_: object) -> None:  # as `Offload` does to a language model that is called
        for parameter in model.parameters():
            before, parameter.data = parameter.data, parameter.data.clone()
            before.fill_(torch.nan)

    model.register_forward_pre_hook(move)
    mask, positions = torch.ones(1, 10), torch.arange(10)[None]
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, visual_query=seen)
    torch.testing.assert_close(output.logits[:, -1], wanted, atol=1e-5, rtol=1e-5)
