"""diffusers' UNet with a second way through it, for drawings: what stays the same over the steps is computed once.

A drawing has one condition and many steps. The keys and values of the cross-attention depend on the condition alone,
the shifts of the residual blocks on the condition and the timestep, and all of them are known when a drawing begins.
The negative condition is zeros and SDXL's keys and values have no biases: a cross-attention over zero values is zero,
so that half of a guided step gets the output layer's bias without any attention. Sums are in another order than in
diffusers; pictures differ by less than 1e-4.

Shapes: B pictures, R rows of a step (B, or 2 B under guidance, the negative ones first), S steps, Q and C tokens and
width of the condition, E width of the timestep's embedding, c, h and w of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.models.denoising import FixedCondition

_PLAIN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
}
"""Settings of a UNet, and the values that the second way knows: those of SDXL, its refiner and SD 1.5."""
_BLOCKS = {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "DownBlock2D", "UpBlock2D"}


class UNet2DConditionModel(diffusers.UNet2DConditionModel):
    """diffusers' class, under its name, by which diffusers looks up what it does with a LoRA."""

    def forward(self, sample: Tensor, *args: Any, fixed: FixedCondition | None = None, **kwargs: Any) -> Any:
        """As in diffusers, unless a fixed condition is given.

        Args:
            sample: (R, c, h, w); with a fixed condition (B, c, h, w), the same for both halves of a guided step.
            args: As in diffusers.
            fixed: Condition of the drawing; `kwargs` are then those of `step`.
            kwargs: As in diffusers.
        """
        if fixed is None:
            return super().forward(sample, *args, **kwargs)
        return self.step(sample, fixed, **kwargs)

    def step(self, sample: Tensor, fixed: FixedCondition, index: int, guided: bool) -> Tensor:
        """A step of a drawing; called through `forward`, so that hooks of the module see it.

        Args:
            sample: Scaled latents, (B, c, h, w).
            fixed: Condition of the drawing.
            index: Index of the timestep.
            guided: Whether the negative condition is computed too.

        Returns:
            (R, c, h, w).
        """
        if not self.is_plain:
            return self._as_in_diffusers(sample, fixed, index, guided)
        if not fixed.shifts:
            self._prepare(fixed)
        rows = slice(None) if guided else slice(-len(sample), None)
        walk = _Step(
            {block: shifts[index, rows] for block, shifts in fixed.shifts.items()},
            fixed.attended,
            len(sample) if guided else 0,
        )
        x: Tensor = self.conv_in(sample)
        x = torch.cat([x, x]) if guided else x
        skipped = [x]
        for down in self.down_blocks:
            for block, attention in _pairs(down):
                x = walk.attend(attention, walk.residual(block, x))
                skipped.append(x)
            for resize in down.downsamplers or []:
                x = resize(x)
                skipped.append(x)
        x = walk.residual(self.mid_block.resnets[0], x)
        for attention, block in zip(self.mid_block.attentions, self.mid_block.resnets[1:], strict=True):
            x = walk.residual(block, walk.attend(attention, x))
        for up in self.up_blocks:
            for block, attention in _pairs(up):
                x = walk.attend(attention, walk.residual(block, torch.cat([x, skipped.pop()], 1)))
            for resize in up.upsamplers or []:
                x = resize(x)
        output: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return output

    @property
    def is_plain(self) -> bool:
        """Whether the second way computes what the first one would."""
        blocks = (*self.down_blocks, *self.up_blocks)
        # Where FSDP gathers each block's weights before its call, the blocks must be called.
        return (
            all(self.config.get(name) in values for name, values in _PLAIN.items())
            and all(type(block).__name__ in _BLOCKS and not block._forward_pre_hooks for block in blocks)
            and self.conv_norm_out is not None
        )

    def _as_in_diffusers(self, sample: Tensor, fixed: FixedCondition, index: int, guided: bool) -> Tensor:
        text, pooled, ids = fixed.text, fixed.pooled, fixed.time_ids
        if guided:
            sample, text = torch.cat([sample, sample]), torch.cat([torch.zeros_like(text), text])
        rows = slice(-len(sample), None)
        added = None if pooled is None else {"text_embeds": pooled[rows], "time_ids": ids[rows]}
        output: Tensor = super().forward(sample, fixed.timesteps[index], text, added_cond_kwargs=added).sample
        return output

    def _prepare(self, fixed: FixedCondition) -> None:
        """Fills in what stays the same."""
        embedded = self.time_embedding(self.time_proj(fixed.timesteps).to(fixed.text.dtype))[:, None]  # (S, 1, E)
        if fixed.pooled is not None:
            added = {"text_embeds": fixed.pooled, "time_ids": fixed.time_ids}
            embedded = embedded + self.get_aug_embed(embedded, fixed.text, added)
        embedded = F.silu(embedded)
        for module in self.modules():
            name = type(module).__name__
            if name == "ResnetBlock2D":
                fixed.shifts[module] = module.time_emb_proj(embedded)[..., None, None]
            elif name == "BasicTransformerBlock":
                cross = module.attn2
                fixed.attended[module] = _heads(cross, cross.to_k(fixed.text)), _heads(cross, cross.to_v(fixed.text))


@dataclass(eq=False)
class _Step:
    """The parts of a UNet in one step.

    Args:
        shifts: Shift of each residual block, (R, channels, 1, 1).
        attended: Keys and values of each cross-attention, of the positive condition.
        negative: Number of the rows with the negative condition, which come first.
    """

    shifts: dict[nn.Module, Tensor]
    attended: dict[nn.Module, tuple[Tensor, Tensor]]
    negative: int

    def residual(self, block: Any, x: Tensor) -> Tensor:
        """`ResnetBlock2D`, (R, channels, h, w)."""
        y = block.conv1(F.silu(block.norm1(x), inplace=True)) + self.shifts[block]
        y = block.conv2(F.silu(block.norm2(y), inplace=True))
        output: Tensor = y + (x if block.conv_shortcut is None else block.conv_shortcut(x))
        return output

    def attend(self, attention: Any, x: Tensor) -> Tensor:
        """`Transformer2DModel`, (R, channels, h, w); None passes on."""
        if attention is None:
            return x
        y, linear = attention.norm(x), attention.use_linear_projection
        if not linear:
            y = attention.proj_in(y)
        y = y.permute(0, 2, 3, 1).flatten(1, 2)
        if linear:
            y = attention.proj_in(y)
        for block in attention.transformer_blocks:
            y = self.transform(block, y)
        if linear:
            y = attention.proj_out(y)
        y = y.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)
        output: Tensor = x + (y if linear else attention.proj_out(y))
        return output

    def transform(self, block: Any, x: Tensor) -> Tensor:
        """`BasicTransformerBlock`, (R, h * w, channels)."""
        attention, cross, feed_forward = block.attn1, block.attn2, block.ff.net
        y = block.norm1(x)
        query, key, value = (_heads(attention, layer(y)) for layer in (attention.to_q, attention.to_k, attention.to_v))
        x = x + _attention(attention, query, key, value)
        positive = x[self.negative :]
        query = _heads(cross, cross.to_q(block.norm2(positive)))
        positive += _attention(cross, query, *self.attended[block])
        if self.negative:
            x[: self.negative] += cross.to_out[0].bias
        y, gate = feed_forward[0].proj(block.norm3(x)).chunk(2, -1)
        output: Tensor = feed_forward[2](F.gelu(gate) * y)
        return x + output


def _pairs(block: Any) -> list[tuple[Any, Any]]:
    """Residual blocks with their attention, or None."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return list(zip(block.resnets, attentions, strict=True))


def _heads(attention: Any, x: Tensor) -> Tensor:
    """(R, tokens, heads * width) to (R, heads, tokens, width)."""
    heads: Tensor = x.view(*x.shape[:2], attention.heads, -1).transpose(1, 2)
    return heads


def _attention(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention, and its output layer."""
    attended = F.scaled_dot_product_attention(query, key, value)
    output: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
    return output
