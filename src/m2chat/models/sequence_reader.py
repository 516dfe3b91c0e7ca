"""Sequences while the language model reads them, token after token, and the states that are kept of the reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.models.decoding import ReplyCache
from m2chat.models.reading import ReadingModel


class SequenceReader:
    """A batch of sequences while the language model reads them, prompt first, and what is kept of the reading.

    Args:
        model: The model.
        prompts: Tokens of each prompt.
        context_pixels: (B, 3, S, S), zeros where there is no picture.
        pad: Number of the padding in front of shorter prompts.
        layers: Layers whose states are kept, as `ReadingModel.read_layers`; none keeps no states.

    Attributes:
        f_img: CLIP tokens of the pictures, (B, I, W).
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: ReadingModel,
        prompts: Sequence[Sequence[int]],
        context_pixels: Tensor,
        pad: int = 0,
        layers: Sequence[int] = (),
    ) -> None:
        from m2chat.models.llama_adapter import AdapterLlamaForCausalLM  # seconds, where no model has been built yet

        self.model, self.layers, self.device = model, tuple(layers), context_pixels.device
        longest = max(map(len, prompts))
        self._padding = [longest - len(prompt) for prompt in prompts]
        self._rows = [list(prompt) for prompt in prompts]
        rows = [[pad] * count + list(prompt) for count, prompt in zip(self._padding, prompts, strict=True)]
        self._ids: Tensor | None = torch.tensor(rows, device=self.device)
        starts = torch.tensor(self._padding, device=self.device)[:, None]
        self._mask = (torch.arange(longest, device=self.device) >= starts).long()
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self.f_img = model.clip(context_pixels)
        self._visual_query = model.visual_query(self.f_img)
        fits = isinstance(model.llama, AdapterLlamaForCausalLM) and ReplyCache.fits(model.llama)
        self._cache: Any = ReplyCache(model.llama, self.layers) if fits else None
        self._logits: Tensor

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Adds as many tokens to each sequence; they are read when something of them is asked for."""
        for row, added in zip(self._rows, rows, strict=True):
            row += added
        self._ids = torch.tensor(rows, device=self.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(self._ids.shape)], 1)
        self._positions = self._positions[:, -1:] + torch.arange(1, self._ids.shape[1] + 1, device=self.device)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits of the next token of each sequence, (B, V)."""
        if self._ids is not None:
            output = self.model.llama(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                cache=self._cache,
                use_cache=True,
                visual_query=self._visual_query,
                logits_to_keep=1,
            )
            self._cache, self._ids = output.cache, None
            self._logits = output.logits[:, -1].float()
        return self._logits

    @torch.inference_mode()
    def states(self, beginnings: Sequence[tuple[int, Sequence[int]]]) -> Tensor | None:
        """Kept states of the beginnings of sequences, those that `ReadingModel.read` would compute.

        Args:
            beginnings: Index of each sequence, and the tokens with which it must begin; T of them at most.

        Returns:
            Padded with zeros on the right, (B, T, D), or (L, B, T, D) of several layers; None if no states were kept,
            or a sequence begins otherwise.
        """
        begin_so = all(self._rows[row][: len(tokens)] == list(tokens) for row, tokens in beginnings)
        if not self.layers or not isinstance(self._cache, ReplyCache) or not begin_so:
            return None
        self.logits()
        whole = torch.cat(self._cache.states, 2)  # (L, all sequences, all tokens, D)
        longest = max(len(tokens) for _, tokens in beginnings)
        cut = [whole[:, row, self._padding[row] :][:, : len(tokens)] for row, tokens in beginnings]
        states = torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in cut], 1)
        return states if len(self.layers) > 1 else states[0]
