"""The reading half of M²Chat: vision encoder, visual query and language model; stage 0 trains it alone.

Shapes: B batch, T text tokens, D width of the language model, S side of the vision encoder's input, I picture tokens,
W their width, V words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.models.precision import ExactBuffers
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.schema import Batch


class ReadingModel(ExactBuffers):
    """Reads text and a picture, and writes text.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        clip: Vision encoder, frozen.
        visual_query: Maker of the adapter's prompts.

    Attributes:
        read_parts: Into how many parts of like length `read` divides a batch; more parts compute less padding.
    """

    read_parts: int = 1

    def __init__(self, llama: Any, clip: ClipTokens, visual_query: VisualQueryEncoder) -> None:
        super().__init__()
        self.llama = llama
        self.clip = clip
        self.visual_query = visual_query

    @property
    def read_layers(self) -> tuple[int, ...]:
        """Layers of the language model whose states `read` returns: -1 is the last, after the final norm."""
        return (-1,)

    def read(
        self,
        input_ids: Tensor,
        context_pixels: Tensor,
        lengths: Tensor | None = None,
        f_img: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The language model's states of whole sequences.

        Args:
            input_ids: Right-padded, (B, T).
            context_pixels: Normalised for CLIP, zeros where there is no picture, (B, 3, S, S); or a single picture
                that all sequences share, (1, 3, S, S).
            lengths: Real tokens of each sequence, (B,); given, `read_parts` counts, and states of padding are zero
                where no part computed them.
            f_img: CLIP tokens of the context pictures where they are known, (B, I, W); None asks CLIP.

        Returns:
            States of the layers of `read_layers`, (B, T, D), or (L, B, T, D) if they are several; f_img
            (B or 1, I, W); and the states from which the next token is predicted, (B, T, D).
        """
        f_img = self.clip(context_pixels) if f_img is None else f_img
        visual_query = self.visual_query(f_img).expand(len(input_ids), -1, -1)
        if lengths is None or self.read_parts == 1:
            states, last = self._states(input_ids, visual_query)
            return states, f_img, last
        length = input_ids.shape[1]
        # As many parts in every process: under FSDP all must gather weights equally often.
        rows = lengths.argsort().tensor_split(min(self.read_parts, len(lengths)))
        read = [self._states(input_ids[part, : int(lengths[part].max())], visual_query[part]) for part in rows]
        back = torch.cat(rows).argsort()
        states, last = (
            torch.cat([F.pad(part, (0, 0, 0, length - part.shape[-2])) for part in parts], -3).index_select(-3, back)
            for parts in zip(*read, strict=True)
        )
        return states, f_img, last

    def _states(self, input_ids: Tensor, visual_query: Tensor) -> tuple[Tensor, Tensor]:
        """States of the layers of `read_layers`, and those from which the next token is predicted."""
        # No mask: padding is on the right and attention is causal, so real tokens never see it.
        layers = self.read_layers
        only_last = layers == (-1,)
        output = self.llama.model(input_ids, visual_query=visual_query, output_hidden_states=not only_last)
        last = output.last_hidden_state
        if only_last:
            return last, last
        chosen = [output.hidden_states[layer] for layer in layers]
        return torch.stack(chosen) if len(chosen) > 1 else chosen[0], last

    def scored(self, batch: Batch, last: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the scored positions, (scored, V), and the tokens that stand there, (scored,).

        Args:
            batch: Batch that was read.
            last: The states from which the next token is predicted, (B, T, D).
        """
        # Most positions are not scored, and at 7B the vocabulary's logits are the largest tensor of all.
        chosen = batch.labels[:, 1:] >= 0
        return self.llama.lm_head(last[:, :-1][chosen]), batch.labels[:, 1:][chosen]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One training pass of stage 0; returns what `scored` does."""
        _, _, last = self.read(batch.input_ids, batch.context_pixels, batch.attention_mask.sum(1))
        return self.scored(batch, last)
