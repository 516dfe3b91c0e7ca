"""The M³Adapter: from the language model's states to the image decoder's text condition (Fig. 2, Eqs. 2-3).

Shapes: B batch, T tokens, D language model width, I picture tokens of width W, Q queries, A attention width,
C and P widths of the sequence and the pooled condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.models.attention import attend
from m2chat.models.config import M3AdapterConfig
from m2chat.models.gate import Gate


class CrossBlock(nn.Module):
    """A pre-norm residual block: queries look at keys and values, then think.

    Args:
        width: A.
        source: Width of what is looked at.
        heads: Attention heads.
    """

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(source, width, bias=False)  # a bias on keys would not change the attention
        self.to_v = nn.Linear(source, width)
        self.to_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def silence(self) -> None:
        """Makes the block pass its queries on unchanged, until it learns otherwise."""
        for layer in (self.to_out, self.feed_forward[-1]):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """One round.

        Args:
            x: Queries, (B, Q, A).
            source: Keys and values, (B, S, width).
            mask: True at positions that can be attended to, (B, S); None for everywhere. A row without any true
                entry looks at nothing and gets zeros.
        """
        query, key, value = (
            self._split(part) for part in (self.to_q(self.norm_query(x)), self.to_k(source), self.to_v(source))
        )
        if mask is None:
            attended = attend(query, key, value)
        else:
            some = mask.any(1)[:, None]
            # An all-false row would be 0/0: it looks everywhere instead, and its result is replaced.
            attended = attend(query, key, value, (mask | ~some)[:, None, None])
            attended = torch.where(some[..., None, None], attended, torch.zeros_like(attended))
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        x = x + self.feed_forward(self.norm_out(x))
        return x

    def _split(self, x: Tensor) -> Tensor:
        """Into heads: (B, S, A) to (B, heads, S, A / heads)."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads

    def attention(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Where `forward` looks, to be looked at: its attention weights, (B, heads, Q, S); arguments as there."""
        query, key = self._split(self.to_q(self.norm_query(x))), self._split(self.to_k(source))
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        weights: Tensor = scores.softmax(-1).nan_to_num()
        return weights


@dataclass
class Condition:
    """Condition of the image decoder.

    Args:
        h_align: In place of the text encoders' sequence, (B, Q, C).
        h_palign: In place of their pooled output, (B, P); None for a decoder without one.
        gate: g, (B,).
        cosine: c, (B,).
    """

    h_align: Tensor
    h_palign: Tensor | None
    gate: Tensor
    cosine: Tensor


class M3Adapter(nn.Module):
    """Learned queries read the caption and image tokens, and beside them the context picture.

    Args:
        config: Sizes and gate.
        llm_width: D.
        clip_width: W.
        queries: Q.
        sequence_width: C.
        pooled_width: P; 0 for a decoder without a pooled condition.
    """

    def __init__(
        self,
        config: M3AdapterConfig,
        llm_width: int,
        clip_width: int,
        queries: int,
        sequence_width: int,
        pooled_width: int,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.norm_states = nn.LayerNorm(llm_width)
        self.norm_picture = nn.LayerNorm(clip_width)
        self.text_blocks = nn.ModuleList(CrossBlock(width, llm_width, config.heads) for _ in range(config.blocks))
        image_blocks = [CrossBlock(width, clip_width, config.heads) for _ in range(config.blocks)]
        self.image_blocks = nn.ModuleList(image_blocks)
        for block in image_blocks:
            # Stage 2 then starts from what stage 1 has learned instead of from noise mixed into it.
            block.silence()
        self.gate = Gate(config.gate)
        self.norm_fused = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(width, sequence_width), nn.GELU(), nn.Linear(sequence_width, sequence_width)
        )
        self.pooled_head = (
            nn.Sequential(nn.Linear(width, sequence_width), nn.GELU(), nn.Linear(sequence_width, pooled_width))
            if pooled_width
            else None
        )
        # Without them the queries tell the words of a caption apart, and not their order.
        self.positions = nn.Parameter(torch.randn(config.positions, llm_width) * 0.5) if config.positions else None
        several = len(config.layers) > 1
        self.layer_weights = nn.Parameter(torch.zeros(len(config.layers))) if several else None

    def image_branch(self) -> list[nn.Module]:
        """The parts that stage 1 leaves alone: without context pictures only weight decay would move them."""
        return [self.norm_picture, self.image_blocks, self.gate]

    def mix_layers(self, states: Tensor) -> Tensor:
        """One sequence of states, (B, T, D), from those of the chosen layers, (L, B, T, D) if there are several."""
        if self.layer_weights is None:
            return states
        normal = F.layer_norm(states, states.shape[-1:])  # layers differ in scale by far
        return torch.einsum("l,lbtd->btd", self.layer_weights.softmax(0).to(normal.dtype), normal)

    def source(self, states: Tensor, mask: Tensor) -> Tensor:
        """What the queries of the text branch look at, (B, T, D): normalised states with their positions.

        Args:
            states: One sequence of states, (B, T, D).
            mask: True at caption and image tokens, which are counted, (B, T); the last position is that of all further
                tokens.
        """
        normal: Tensor = self.norm_states(states)
        if self.positions is None:
            return normal
        return normal + F.embedding((mask.cumsum(1) - 1).clamp(0, len(self.positions) - 1), self.positions)

    def forward(
        self,
        states: Tensor,
        answer_mask: Tensor,
        caption_mask: Tensor,
        image_mask: Tensor,
        f_img: Tensor,
        has_context: Tensor,
        use_image: bool = True,
        read: tuple[Tensor, Tensor] | None = None,
    ) -> Condition:
        """The condition of each sample's picture.

        Args:
            states: States of the language model, (B, T, D), or (L, B, T, D) of several layers.
            answer_mask: (B, T).
            caption_mask: (B, T).
            image_mask: (B, T).
            f_img: CLIP tokens of the context picture, (B, I, W).
            has_context: Whether there is one, (B,).
            use_image: Whether the image branch takes part; stage 1 trains without it.
            read: Positions of the caption and image tokens, (B, S), and which of them are real, (B, S), where they are
                known: then no other token becomes a key or a value.
        """
        # Mixed here and not where the frozen states come from, so that stage 1 trains the weights too.
        states = self.mix_layers(states)
        batch = states.shape[0]
        if read is None:
            chosen, mask = states, caption_mask | image_mask
        else:
            places, mask = read
            chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        source = self.source(chosen, mask)
        semantic = self.queries.expand(batch, -1, -1)
        for block in self.text_blocks:
            semantic = block(semantic, source, mask)
        gate, cosine = self.gate(states, answer_mask, caption_mask, has_context)
        if use_image and self.config.gate.mode != "off":
            picture = self.queries.expand(batch, -1, -1)
            seen = self.norm_picture(f_img.to(self.norm_picture.weight.dtype))
            if not self.config.f_img:  # times zero, so that its parameters still get gradients on every rank
                seen = seen * 0
            for block in self.image_blocks:
                picture = block(picture, seen, None)
            fused = fuse(picture, semantic, gate)
        else:
            gate, fused = torch.ones_like(gate), semantic
        fused = self.norm_fused(fused)
        pooled = self.pooled_head(fused.mean(1)) if self.pooled_head is not None else None
        return Condition(self.head(fused), pooled, gate, cosine)


@torch.no_grad()
def attention_maps(adapter: M3Adapter, states: Tensor, mask: Tensor, f_img: Tensor) -> tuple[Tensor, Tensor]:
    """Where the queries look, mean over blocks and heads.

    Args:
        adapter: M³Adapter whose queries attend.
        states: States of the language model, as `M3Adapter.forward` takes them.
        mask: True at caption and image tokens, (B, T).
        f_img: CLIP tokens of the context picture, (B, I, W).

    Returns:
        Weights over the language model's tokens, (B, Q, T), and over the picture's, (B, Q, I); rows sum to 1.
    """
    source = adapter.source(adapter.mix_layers(states), mask)
    picture = adapter.norm_picture(f_img.to(adapter.norm_picture.weight.dtype))
    averaged = []
    for blocks, seen, allowed in ((adapter.text_blocks, source, mask), (adapter.image_blocks, picture, None)):
        x, maps = adapter.queries.expand(len(seen), -1, -1), []
        for block in blocks:
            assert isinstance(block, CrossBlock)
            maps.append(block.attention(x, seen, allowed).mean(1))
            x = block(x, seen, allowed)
        averaged.append(torch.stack(maps).mean(0))
    return averaged[0], averaged[1]


def fuse(picture: Tensor, semantic: Tensor, gate: Tensor) -> Tensor:
    """f_fus of Eq. 3.

    Args:
        picture: A_img, (B, Q, A).
        semantic: A_h, (B, Q, A).
        gate: g, (B,); where it is 1 the picture has no influence.
    """
    g = gate[:, None, None].to(semantic.dtype)
    return torch.where(g < 1, (1 - g) * picture + g * semantic, semantic)
