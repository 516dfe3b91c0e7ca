"""Captions of shown pictures, from the language model as it was before M³FT.

Stage 2 trains on replies and on no descriptions, and the tuned model forgets how to describe. The tensors that it
changes are few, so the pretrained ones are kept and put in place while a caption is generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.generation import Decoding, SpecialTokens, decode_replies
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.reading import ReadingModel
from m2chat.text import DESCRIBE, Layout, Request


def pretrained_tensors(model: M2ChatModel) -> dict[str, Tensor]:
    """Copies of the tensors that stage 2 changes in the language model; call it before trained weights are loaded."""
    parameters = dict(model.named_parameters())
    return {
        name: parameters[name].detach().clone() for name in adapter_parameter_names(model.llama, model.visual_query)
    }


@contextmanager
def with_pretrained(model: M2ChatModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with its pretrained tensors; it must not be used elsewhere meanwhile."""
    parameters = dict(model.named_parameters())
    tuned = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor.to(tuned[name])
        yield
    finally:
        for name, tensor in tuned.items():
            parameters[name].data = tensor.to(parameters[name].device)  # to which a part may have moved meanwhile


def describe(
    model: M2ChatModel, tensors: Mapping[str, Tensor], pixels: Tensor, layout: Layout, max_new_tokens: int = 64
) -> list[str]:
    """Captions of pictures.

    Args:
        model: Model whose language model describes.
        tensors: Tensors from `pretrained_tensors`; none of a model of stage 1, which has the pretrained ones itself.
        pixels: Pictures, normalised for the vision encoder, (B, 3, S, S).
        layout: Layout of the prompt.
        max_new_tokens: Maximum length of a caption in tokens.
    """
    prompt, _ = layout.prompt(Request(DESCRIBE), layout.max_tokens - max_new_tokens)
    with with_pretrained(model, tensors):
        return write_texts(model, [prompt] * len(pixels), pixels, layout, max_new_tokens)


@torch.no_grad()
def write_texts(
    model: ReadingModel, prompts: Sequence[Sequence[int]], pixels: Tensor, layout: Layout, max_new_tokens: int
) -> list[str]:
    """Answers in text alone, decoded greedily.

    Args:
        model: Model whose language model answers.
        prompts: Tokens of each prompt.
        pixels: Context picture of each prompt, normalised for the vision encoder, (B, 3, S, S).
        layout: Layout of the prompts.
        max_new_tokens: Maximum length of an answer in tokens.
    """
    tokens = layout.tokenizer
    special = SpecialTokens(tokens.ic_id, tokens.img_id, layout.end_id, tokens.pad_id)
    decoding = Decoding(max_text_tokens=max_new_tokens, max_pictures=0)
    replies = decode_replies(model, prompts, pixels, special, decoding)
    return [" ".join(tokens.decode(segments[0].answer).split()) for segments in replies]
