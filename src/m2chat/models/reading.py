"""The reading half of M²Chat: vision encoder, visual query and language model; stage 0 trains it alone.

Shapes: B batch, T text tokens, D width of the language model, S side of the vision encoder's input, I picture tokens,
W their width, V words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.batch import Batch
from m2chat.models.precision import ExactBuffers
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.places import Places


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
        places: Places | None = None,
        f_img: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The language model's states of whole sequences.

        Args:
            input_ids: Right-padded, (B, T).
            context_pixels: Normalised for CLIP, zeros where there is no picture, (B, 3, S, S); or a single picture
                that all sequences share, (1, 3, S, S).
            places: Where the sequences end, and which of them have a picture; given, the pictures that are not there
                are looked at once for all, `read_parts` counts, and states of padding are zero where no part computed
                them.
            f_img: CLIP tokens of the context pictures where they are known, (B, I, W); None asks CLIP.

        Returns:
            States of the layers of `read_layers`, (B, T, D), or (L, B, T, D) if they are several; f_img
            (B or 1, I, W); and the states from which the next token is predicted, (B, T, D).
        """
        f_img, visual_query = self._look(context_pixels, places, f_img)
        if places is None:
            states, last = self._states(input_ids, visual_query)
            return states, f_img, last
        begun = self._begun(input_ids, visual_query, places.prefix)
        if self.read_parts == 1:
            states, last = self._states(input_ids, visual_query, begun)
            return states, f_img, last
        (count, length), lengths = input_ids.shape, sorted(places.lengths)
        read, done = [], 0
        # As many parts in every process: under FSDP all must gather weights equally often.
        for rows in places.order.tensor_split(min(self.read_parts, count)):
            done += len(rows)
            query = visual_query if len(visual_query) == 1 else visual_query[rows]
            read.append(self._states(input_ids[rows, : lengths[done - 1]], query, begun))
        states, last = (
            torch.cat([F.pad(part, (0, 0, 0, length - part.shape[-2])) for part in parts], -3)
            for parts in zip(*read, strict=True)
        )
        return states.index_select(-3, places.back), f_img, last.index_select(-3, places.back)

    def _look(self, context_pixels: Tensor, places: Places | None, f_img: Tensor | None) -> tuple[Tensor, Tensor]:
        """CLIP tokens of the pictures, (B or 1, I, W), and the visual query, (B or 1, K, D)."""
        count = len(context_pixels)
        if places is None or len(places.shown) + 1 >= count:  # nothing to save
            f_img = self.clip(context_pixels) if f_img is None else f_img
            return f_img, self.visual_query(f_img)
        # Pictures that are there, and an empty one for all others: every process has at least that.
        rows, row_of = places.pictures, places.picture
        if f_img is None:
            pixels = context_pixels.index_select(0, rows)
            shown = self.clip(torch.cat([pixels, torch.zeros_like(context_pixels[:1])]))
        else:
            empty = next(row for row in range(count) if row not in places.shown)
            shown = torch.cat([f_img.index_select(0, rows), f_img[empty : empty + 1]])
        return shown.index_select(0, row_of), self.visual_query(shown).index_select(0, row_of)

    def _begun(self, input_ids: Tensor, visual_query: Tensor, prefix: int) -> Any:
        """What all sequences begin with, a `Beginning`; None where it has to be read with each of them.

        That is so where a gradient is wanted, pictures differ, or FSDP would gather every layer's weights twice.
        """
        from m2chat.models.beginning import SHORTEST, Beginning  # seconds, where nothing is read

        alone = prefix < SHORTEST or len(visual_query) > 1 or torch.is_grad_enabled()
        if alone or any(layer._forward_pre_hooks for layer in self.llama.model.layers):
            return None
        return Beginning(self.llama, input_ids[:1, :prefix], visual_query, self.read_layers != (-1,))

    def _states(self, input_ids: Tensor, visual_query: Tensor, begun: Any = None) -> tuple[Tensor, Tensor]:
        """States of the layers of `read_layers`, and those from which the next token is predicted."""
        # No mask: padding is on the right and attention is causal, so real tokens never see it.
        hidden = self.read_layers != (-1,)
        if begun is None:
            return self._chosen(self.llama.model(input_ids, visual_query=visual_query, output_hidden_states=hidden))
        behind = self.llama.model(
            input_ids[:, begun.length :], visual_query=visual_query, output_hidden_states=hidden, cache=begun
        )
        states, last = (
            torch.cat([first.expand(*rest.shape[:-2], -1, -1), rest], -2)
            for first, rest in zip(self._chosen(begun.output), self._chosen(behind), strict=True)
        )
        return states, last

    def _chosen(self, output: Any) -> tuple[Tensor, Tensor]:
        """The same of an output of the language model."""
        last = output.last_hidden_state
        if self.read_layers == (-1,):
            return last, last
        chosen = [output.hidden_states[layer] for layer in self.read_layers]
        return torch.stack(chosen) if len(chosen) > 1 else chosen[0], last

    def scored(self, batch: Batch, last: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the scored positions, (scored, V), and the tokens that stand there, (scored,).

        Args:
            batch: Batch that was read.
            last: The states from which the next token is predicted, (B, T, D).
        """
        # Most positions are not scored, and at 7B the vocabulary's logits are the largest tensor of all.
        chosen = batch.located().scored
        labels = batch.labels.flatten().index_select(0, chosen + 1)
        return self.llama.lm_head(last.flatten(0, 1).index_select(0, chosen)), labels

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One training pass of stage 0; returns what `scored` does."""
        _, _, last = self.read(batch.input_ids, batch.context_pixels, batch.located())
        return self.scored(batch, last)
