"""The vision encoder, CLIP's vision transformer, and the visual query of LLaMA-Adapter V2.

Shapes: B batch, I tokens of a picture (257 at paper scale), W their width (768), K prompts, D language model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.errors import UserError
from m2chat.models.attention import attend


class ClipTokens(nn.Module):
    """Every token of an open_clip vision transformer, normalised and projected; always frozen.

    open_clip's `forward` returns the pooled token projected and the others unprojected; LLaMA-Adapter projects
    all of them.

    Args:
        visual: The vision tower of an open_clip model.
        channel_order: ``rgb``, or ``bgr`` for adapter weights that were trained on pictures with swapped channels.
    """

    def __init__(self, visual: Any, channel_order: str = "rgb") -> None:
        super().__init__()
        if channel_order not in ("rgb", "bgr"):
            raise UserError(f"channel_order={channel_order!r}: choose 'rgb' or 'bgr'")
        self.visual = visual
        self.channel_order = channel_order
        self.requires_grad_(False)

    @property
    def width(self) -> int:
        """W."""
        return int(self.visual.proj.shape[1])

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """f_img of pictures, without a gradient: (B, 3, S, S) to (B, I, W), as `tokens`."""
        return self.tokens(pixel_values)

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """f_img of pictures.

        Args:
            pixel_values: Normalised as CLIP wants them, (B, 3, S, S).

        Returns:
            (B, I, W): the class token first.
        """
        visual = self.visual
        x = pixel_values.to(visual.conv1.weight.dtype)
        x = x.flip(1) if self.channel_order == "bgr" else x
        x = visual.conv1(x).flatten(2).transpose(1, 2)  # (B, patches, width)
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + visual.positional_embedding.to(x.dtype)
        x = visual.transformer(visual.ln_pre(x))
        f_img: Tensor = visual.ln_post(x) @ visual.proj
        return f_img


class _Block(nn.Module):
    """A pre-norm transformer block with the parameter names of timm's, LayerNorm eps 1e-5."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) to (B, N, W), every token attending to every other."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](attended)
        x = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x


class VisualQueryEncoder(nn.Module):
    """Makes the K prompts of a picture; the names are those of the official adapter file.

    Args:
        clip_width: W.
        width: D.
        prompts: K.
        depth: Number of blocks.
        heads: Heads of each block.
        visual_width: Width of the blocks; None for that of the CLIP tokens.
        visual_hidden: Width inside the blocks' feed-forwards; None for four times theirs.
    """

    def __init__(
        self,
        clip_width: int,
        width: int,
        prompts: int = 10,
        depth: int = 8,
        heads: int = 16,
        visual_width: int | None = None,
        visual_hidden: int | None = None,
    ) -> None:
        super().__init__()
        inner = visual_width or clip_width
        self.clip_proj = nn.Linear(clip_width, inner)
        self.clip_proj_norm = nn.LayerNorm(inner)
        self.visual_query = nn.Embedding(prompts, inner)
        self.visual_blocks = nn.ModuleList(_Block(inner, heads, visual_hidden or 4 * inner) for _ in range(depth))
        self.visual_proj = nn.Linear(inner, width)
        self.visual_proj_norm = nn.LayerNorm(width)

    def forward(self, f_img: Tensor) -> Tensor:
        """Reads a picture.

        Args:
            f_img: CLIP tokens, (B, I, W).

        Returns:
            The visual query, (B, K, D).
        """
        # The small encoder stays in full precision, in whichever CLIP ran.
        tokens = self.clip_proj_norm(self.clip_proj(f_img.to(self.clip_proj.weight.dtype)))
        x = torch.cat([self.visual_query.weight.expand(len(tokens), -1, -1), tokens], 1)
        for block in self.visual_blocks:
            x = block(x)
        prompts: Tensor = self.visual_proj_norm(self.visual_proj(x[:, : self.visual_query.num_embeddings]))
        return prompts
