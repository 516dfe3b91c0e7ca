"""LLaMA-Adapter V2 on top of transformers' LLaMA (https://arxiv.org/abs/2304.15010).

Shapes: B batch, T tokens, D model width, H heads, K adapter prompts.

Parameter names are those of transformers, so a plain LLaMA folder loads; what the adapter adds has other names:
biases, ``adapter_gate``, ``adapter_query``, LoRA pairs, and the rows of added tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from m2chat.models.added_tokens import ExtendedEmbedding, ExtendedHead
from m2chat.models.attention import attend, prefers_products
from m2chat.models.decoding import ReplyCache
from m2chat.models.precision import ExactBuffers


class AdapterLlamaConfig(LlamaConfig):
    """LLaMA's configuration and the adapter's.

    Args:
        adapter_len: K, prompts of each layer.
        adapter_layers: Layers that attend to prompts: the last so many.
        adapter_bias: Whether the output, query and feed-forward projections have biases.
        lora_rank: Rank of the low-rank updates; 0 for none.
        lora_from: First layer that has them, counted from 0.
        extra_tokens: Tokens added behind the base vocabulary.
        added_from: Number of the first of them; None is the table's number of rows. It is larger if the tokenizer
            has special tokens for which the table has no row.
    """

    model_type = "m2chat_adapter_llama"

    def __init__(
        self,
        adapter_len: int = 10,
        adapter_layers: int = 31,
        adapter_bias: bool = True,
        lora_rank: int = 0,
        lora_from: int = 0,
        extra_tokens: int = 2,
        added_from: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.adapter_len = adapter_len
        self.adapter_layers = adapter_layers
        self.adapter_bias = adapter_bias
        self.lora_rank = lora_rank
        self.lora_from = lora_from
        self.extra_tokens = extra_tokens
        self.added_from = added_from
        super().__init__(**kwargs)

    def rank_of(self, layer: int) -> int:
        """Rank of the low-rank updates of a layer, counted from 0."""
        return self.lora_rank if layer >= self.lora_from else 0


class AdapterLinear(nn.Linear):
    """A linear map with an optional added bias and an optional low-rank update (no scale, no dropout).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias, starting at zero.
        rank: Rank of the update; 0 for none.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, rank: int = 0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.lora_A = nn.Parameter(torch.empty(rank, in_features)) if rank else None
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank)) if rank else None
        if self.lora_A is not None:
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def base(self, x: Tensor) -> Tensor:
        """Without the low-rank update: what the adapter's prompts go through."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """With everything."""
        y = super().forward(x)
        if self.lora_A is not None and self.lora_B is not None:
            y = y + F.linear(F.linear(x, self.lora_A), self.lora_B)
        return y


class AdapterLlamaAttention(LlamaAttention):
    """Attention with the zero-initialised gated term to K prompts."""

    def __init__(self, config: AdapterLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, bias, rank = config.hidden_size, config.adapter_bias, config.rank_of(layer_idx)
        self.q_proj = AdapterLinear(width, config.num_attention_heads * self.head_dim, bias, rank)
        self.k_proj = AdapterLinear(width, config.num_key_value_heads * self.head_dim, False, rank)
        self.v_proj = AdapterLinear(width, config.num_key_value_heads * self.head_dim, False, rank)
        self.o_proj = AdapterLinear(config.num_attention_heads * self.head_dim, width, bias, rank)
        # Every layer has a gate, as the official file does, though the first layers without prompts never use it.
        self.adapter_gate = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.adapter_new_gate = nn.Parameter(torch.ones(1)) if rank else None
        has_prompts = layer_idx >= config.num_hidden_layers - config.adapter_layers
        self.adapter_query = nn.Parameter(torch.randn(config.adapter_len, width) * 0.02) if has_prompts else None

    def _prompt_attention(self, query: Tensor, visual_query: Tensor) -> Tensor:
        """The gated term: g_h * softmax(q P_k^T / sqrt(d)) P_v, with (B, T, H * d) as its result.

        The query is the rotated one and the prompts' keys are not rotated; the prompts are not normalised.
        """
        assert self.adapter_query is not None
        prompts = self.adapter_query + visual_query.to(self.adapter_query.dtype)  # (B or 1, K, D)
        shape = (*prompts.shape[:2], -1, self.head_dim)
        key, value = (
            projection.base(prompts).view(shape).transpose(1, 2).expand(len(query), -1, -1, -1)
            for projection in (self.k_proj, self.v_proj)
        )
        attended = attend(query, key.to(query.dtype), value.to(query.dtype))
        gated = self.gate().to(attended.dtype)[:, None, None] * attended
        return gated.transpose(1, 2).flatten(2)

    def gate(self) -> Tensor:
        """Weight of the prompts in each head, (H,)."""
        gate = torch.tanh(self.adapter_gate)
        return gate if self.adapter_new_gate is None else gate * self.adapter_new_gate

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        visual_query: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """LLaMA's attention plus the gated term.

        Args:
            hidden_states: (B, T, D).
            position_embeddings: Cosines and sines of the rotation.
            attention_mask: Mask as transformers prepares it.
            cache: Cache; the prompts never enter it.
            visual_query: (B, K, D), or (1, K, D) for all alike, added to every layer's prompts; None switches the
                prompts off.
            kwargs: Arguments of the attention implementation.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        weights, dropout = None, self.attention_dropout if self.training else 0.0
        if prefers_products(query) and attention_mask is None and cache is None and not dropout:
            output = attend(query, key, value, causal=True).transpose(1, 2)
        else:
            by_name = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            output, weights = by_name(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        output = output.reshape(*hidden_states.shape[:-1], -1)
        if visual_query is not None and self.adapter_query is not None:
            output = output + self._prompt_attention(query, visual_query)
        return self.o_proj(output.contiguous()), weights


class AdapterLlamaDecoderLayer(LlamaDecoderLayer):
    """A LLaMA layer whose linear maps are the adapter's."""

    is_frozen = False
    """Whether nothing goes back through it, so that it costs a training its forward pass alone."""

    def __init__(self, config: AdapterLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = AdapterLlamaAttention(config, layer_idx)
        width, inner = config.hidden_size, config.intermediate_size
        bias, rank = config.adapter_bias, config.rank_of(layer_idx)
        self.mlp.gate_proj = AdapterLinear(width, inner, bias, rank)
        self.mlp.up_proj = AdapterLinear(width, inner, bias, rank)
        self.mlp.down_proj = AdapterLinear(inner, width, bias, rank)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As LLaMA's."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return super().forward(*args, **kwargs)


class AdapterLlamaForCausalLM(ExactBuffers, LlamaForCausalLM):
    """LLaMA with the adapter in every layer and the rows of the added tokens.

    Args:
        config: Sizes of LLaMA and of its adapter.
    """

    config_class = AdapterLlamaConfig
    _no_split_modules: ClassVar[list[str]] = ["AdapterLlamaDecoderLayer"]
    config: AdapterLlamaConfig
    model: Any
    generate: Any
    post_init: Any
    lm_head: nn.Linear

    def __init__(self, config: AdapterLlamaConfig) -> None:
        super().__init__(config)
        self.model.layers = nn.ModuleList(
            AdapterLlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        if config.extra_tokens:
            start = config.added_from or config.vocab_size
            self.model.embed_tokens = ExtendedEmbedding(self.model.embed_tokens, config.extra_tokens, start)
            self.lm_head = ExtendedHead(self.lm_head, config.extra_tokens, start)
        self.post_init()
        self.tie_tables()

    def tie_tables(self) -> None:
        """Makes both tables one parameter if the configuration says so; the added rows stay two."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def init_extra_tokens(self) -> None:
        """Starts each added row as the mean of its table."""
        tables: tuple[Any, Any] = (self.model.embed_tokens, self.lm_head)
        for table in tables:
            table.extra.copy_(table.weight.float().mean(0).expand_as(table.extra))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        visual_query: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As LLaMA's, with the picture's prompts.

        `visual_query` is named here because `generate` refuses arguments that it cannot find in the signature.

        Args:
            input_ids: (B, T).
            attention_mask: True at real tokens, (B, T).
            position_ids: (B, T).
            cache: Cache; with a `ReplyCache` the pass goes through it, and only the last token gets logits.
            inputs_embeds: Instead of `input_ids`, (B, T, D).
            use_cache: Whether to return a cache.
            visual_query: (B, K, D), or (1, K, D) for all alike; None switches the prompts off.
            logits_to_keep: How many of the last positions get logits; 0 for all.
            kwargs: Passed on.
        """
        if isinstance(cache, ReplyCache):
            assert input_ids is not None and attention_mask is not None and position_ids is not None
            last = cache.advance(input_ids, attention_mask, position_ids, visual_query)
            return CausalLMOutputWithPast(logits=self.lm_head(last), cache=cache)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            visual_query=visual_query,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
