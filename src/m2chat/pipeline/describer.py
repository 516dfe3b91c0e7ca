"""Says what a shown picture shows, with the language model as it was before M³FT.

Stage 2 teaches replies and no descriptions, and the tuned model forgets how to describe. The tensors that it changed
are few, so the released ones are kept and put in for as long as a description takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.generation import Decoding, SpecialTokens, decode_replies
from m2chat.models.m2chat import M2ChatModel
from m2chat.text import DESCRIBE, Layout, Request


def released_tensors(model: M2ChatModel) -> dict[str, Tensor]:
    """Copies of what stage 2 will change in the language model; to be taken before trained weights are loaded."""
    parameters = dict(model.named_parameters())
    return {
        name: parameters[name].detach().clone() for name in adapter_parameter_names(model.llama, model.visual_query)
    }


@contextmanager
def released(model: M2ChatModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with its released tensors; nobody else may use it meanwhile."""
    parameters = dict(model.named_parameters())
    tuned = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor.to(tuned[name])
        yield
    finally:
        for name, own in tuned.items():
            parameters[name].data = own


def describe(
    model: M2ChatModel, tensors: Mapping[str, Tensor], pixels: Tensor, layout: Layout, max_tokens: int = 64
) -> list[str]:
    """Captions of pictures.

    Args:
        model: Whose language model looks.
        tensors: Of `released_tensors`.
        pixels: As the vision encoder wants them, (B, 3, S, S).
        layout: Builds the prompt.
        max_tokens: Longest caption.
    """
    tokens = layout.tokenizer
    prompt, _ = layout.prompt(Request(DESCRIBE), layout.max_tokens - max_tokens)
    special = SpecialTokens(tokens.ic_id, tokens.img_id, tokens.eos_id, tokens.pad_id)
    decoding = Decoding(max_text_tokens=max_tokens, max_pictures=0)
    with released(model, tensors), torch.no_grad():
        said = decode_replies(model, [prompt] * len(pixels), pixels, special, decoding)
    return [" ".join(tokens.decode(segments[0].answer).split()) for segments in said]
