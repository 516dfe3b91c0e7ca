"""The language model's way through a reply: what stays the same from token to token is computed once.

Keys and values have their memory from the beginning, those of the adapter's prompts are computed once a picture, maps
of the same input are one product where their weights lie side by side (`m2chat.models.layouts`), and the states of
chosen layers are kept, so that the condition of a picture needs no second pass over the sequence.

Shapes: B batch, T new tokens, n tokens so far, D model width, H heads, G heads of each key, d width of a head, K
prompts of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 128
"""Tokens for which memory is added at once."""
_STRETCHED = ("dynamic", "longrope")
"""Kinds of rotations that depend on the length of the sequence."""


@dataclass(eq=False)
class _Maps:
    """Linear maps of one input.

    Args:
        parts: The maps.
        weight: Their weights as one matrix, or None if they do not lie side by side or have low-rank updates.
        bias: Their biases as one, or None if they have none.
    """

    parts: Sequence[Any]
    weight: Tensor | None = field(init=False)
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        plain = all(getattr(part, "lora_A", None) is None for part in self.parts)
        self.weight = joined([part.weight for part in self.parts]) if plain else None
        if self.weight is not None and any(part.bias is not None for part in self.parts):
            biases = [
                part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in self.parts
            ]
            self.bias = torch.cat(biases)

    def __call__(self, x: Tensor) -> Tensor:
        """Their outputs side by side, (B, T, sum of widths)."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([part(x) for part in self.parts], -1)


def joined(weights: Sequence[Tensor]) -> Tensor | None:
    """Matrices of the same width as one, without a copy; None if they do not lie side by side."""
    first, rows = weights[0], sum(len(weight) for weight in weights)
    place = first.storage_offset()
    for weight in weights:
        if type(weight.data) is not Tensor or not weight.is_contiguous():
            return None
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        if weight.storage_offset() != place:
            return None
        place += weight.numel()
    return first.detach().as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())


class ReplyCache:
    """What is kept of a batch of replies while they are decoded; `AdapterLlamaForCausalLM` takes it as its cache.

    It holds for one picture and for weights that do not change.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        layers: Layers whose states are kept, by their numbers in transformers' ``hidden_states``.

    Attributes:
        states: The kept states of each pass, (layers, B, T, D).
    """

    def __init__(self, llama: Any, layers: Sequence[int] = ()) -> None:
        self.llama = llama
        count = llama.config.num_hidden_layers
        self.layers = [layer % (count + 1) for layer in layers]
        self.length = self.room = 0
        self.states: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._prompts: list[tuple[Tensor, Tensor] | None] = []
        self._is_padded = False
        self._qkv: list[_Maps] = []
        self._gate_up: list[_Maps] = []

    @staticmethod
    def fits(llama: Any) -> bool:
        """Whether a language model can be decoded so: not where FSDP gathers the weights of each layer's call."""
        layers = llama.model.layers
        stretched = llama.model.rotary_emb.rope_type in _STRETCHED
        return not stretched and not any(layer._forward_pre_hooks for layer in layers)

    def advance(self, ids: Tensor, mask: Tensor, positions: Tensor, visual_query: Tensor | None) -> Tensor:
        """Reads new tokens.

        Args:
            ids: (B, T).
            mask: True at real tokens, those so far included, (B, n).
            positions: (B, T).
            visual_query: (B, K, D), the same in every pass; None switches the prompts off.

        Returns:
            The state of the last token, from which the next one is predicted, (B, 1, D).
        """
        model, layers = self.llama.model, self.llama.model.layers
        x: Tensor = model.embed_tokens(ids)
        if not self._prompts:
            self._is_padded = not bool(mask.all())
            # Not before: a language model that takes turns on the device is there only now.
            self._prompts = [_prompts(layer.self_attn, visual_query) for layer in layers]
            self._qkv = [_Maps([getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]) for layer in layers]
            self._gate_up = [_Maps([layer.mlp.gate_proj, layer.mlp.up_proj]) for layer in layers]
        start, self.length = self.length, self.length + ids.shape[1]
        if self.length > self.room:
            self._grow(x)
        groups = self.llama.config.num_attention_heads // self.llama.config.num_key_value_heads
        allowed = self._allowed(mask.bool(), ids.shape[1], groups)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]  # (B, 1, T, d)
        kept = [x] if 0 in self.layers else []
        for number, layer in enumerate(layers):
            x = x + self._attend(number, _norm(layer.input_layernorm, x), start, allowed, (cos, sin))
            gate, up = self._gate_up[number](_norm(layer.post_attention_layernorm, x)).chunk(2, -1)
            x = x + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
            if number + 1 in self.layers and number + 1 < len(layers):
                kept.append(x)
        x = _norm(model.norm, x)
        if self.layers:
            by_number = dict(zip(sorted({n for n in self.layers if n < len(layers)}), kept, strict=True))
            self.states.append(torch.stack([by_number.get(number, x) for number in self.layers]))
        return x[:, -1:]

    def _attend(
        self, number: int, x: Tensor, start: int, allowed: Tensor | None, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        attention = self.llama.model.layers[number].self_attn
        shared, width = self.llama.config.num_key_value_heads, attention.head_dim
        batch, length = x.shape[:2]
        heads = self._qkv[number](x).view(batch, length, -1, width).transpose(1, 2)
        turned, value = heads[:, :-shared], heads[:, -shared:]
        cos, sin = rotation
        turned = turned * cos + turned.roll(width // 2, -1) * sin
        query, key = turned[:, :-shared], turned[:, -shared:]
        cache = self._keys[number]
        cache[0, :, :, start : self.length] = key
        cache[1, :, :, start : self.length] = value
        # Heads of the same keys stand below each other, so that no key is repeated.
        grouped = query.reshape(batch, shared, -1, width)
        keys, values = cache[:, :, :, : self.length]
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=attention.scaling)
        attended = attended.reshape(batch, -1, length, width)
        prompts = self._prompts[number]
        if prompts is not None:
            attended = attended + F.scaled_dot_product_attention(query, *prompts)
        output: Tensor = attention.o_proj(attended.transpose(1, 2).flatten(2))
        return output

    def _allowed(self, mask: Tensor, length: int, groups: int) -> Tensor | None:
        """Which tokens the new ones see, (B, 1, G * T, n); None if they see all."""
        if length == 1 and not self._is_padded:
            return None
        tokens = torch.arange(self.length, device=mask.device)
        new = tokens[-length:, None]
        # Padding sees itself, so that it has finite states, which nothing sees.
        allowed = (tokens <= new) & mask[:, None] | (tokens == new)
        return allowed.repeat(1, groups, 1)[:, None]

    def _grow(self, x: Tensor) -> None:
        """Adds memory for keys and values, and rotations for the positions."""
        config, model = self.llama.config, self.llama.model
        self.room = (self.length + _BLOCK) // _BLOCK * _BLOCK + _BLOCK
        shape = (2, len(x), config.num_key_value_heads, self.room, model.layers[0].self_attn.head_dim)
        grown = [x.new_empty(shape) for _ in model.layers]
        for old, new in zip(self._keys, grown, strict=False):
            new[:, :, :, : old.shape[3]] = old
        self._keys = grown
        (self._cos,), (sin,) = model.rotary_emb(x, torch.arange(self.room, device=x.device)[None])
        half = sin.shape[-1] // 2
        self._sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _prompts(attention: Any, visual_query: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Keys of a layer's prompts, and their values times the gate, (B, H, K, d); None if it has none."""
    if attention.adapter_query is None or visual_query is None:
        return None
    prompts = attention.adapter_query + visual_query.to(attention.adapter_query.dtype)
    shape = (*prompts.shape[:2], -1, attention.head_dim)
    key, value = (
        layer.base(prompts).view(shape).transpose(1, 2).repeat_interleave(attention.num_key_value_groups, 1)
        for layer in (attention.k_proj, attention.v_proj)
    )
    return key, value * attention.gate()[:, None, None].to(value.dtype)
