"""The tokenizers of the image decoder's text encoders, for drawing by its own words and for alignment targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2chat.text.clip_tokenizers import clip_tokenizers, require_tokenizers


class CaptionTokens:
    """The tokenizers of the image decoder's text encoders.

    Args:
        image_decoder: A diffusers folder with ``tokenizer`` and, as SDXL has it, ``tokenizer_2``; or SDXL in one file.

    Raises:
        UserError: If it has no tokenizers.
    """

    def __init__(self, image_decoder: str | Path) -> None:
        self.path = Path(image_decoder)
        require_tokenizers(self.path)
        self._loaded: list[Any] = []
        self._alike = False

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens for the first and the second text encoder, (B, Q) each; zeros where there is no second."""
        first, *second = self._tokenizers()
        rows = self._encode(first, captions)
        ids = self._filled(first, rows)
        if not second:
            return ids, torch.zeros_like(ids)
        return ids, self._filled(second[0], rows if self._alike else self._encode(second[0], captions))

    @staticmethod
    def _encode(tokenizer: Any, captions: Sequence[str]) -> list[list[int]]:
        # Below transformers' own call, which costs a third more; and one by one, since a batch would be spread over
        # threads, which costs more than so few words, and which a forked worker process must not do.
        encode = tokenizer.backend_tokenizer.encode
        return [encode(caption).ids for caption in captions]

    @staticmethod
    def _filled(tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of different lengths as one tensor, (B, Q)."""
        table = np.full((len(rows), tokenizer.model_max_length), tokenizer.pad_token_id)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(table)

    def _tokenizers(self) -> list[Any]:
        if not self._loaded:
            self._loaded = clip_tokenizers(self.path)
            for tokenizer in self._loaded:
                backend = tokenizer.backend_tokenizer
                backend.enable_truncation(tokenizer.model_max_length)
                backend.no_padding()
                # A caption that spells `<|endoftext|>` must stay words, or the encoder would pool in its middle.
                backend.encode_special_tokens = True
            # SDXL's two differ only in what they fill up with: then the words are looked up once.
            self._alike = len({_vocabulary(tokenizer) for tokenizer in self._loaded}) == 1
        return self._loaded

    def __reduce__(self) -> tuple[type[CaptionTokens], tuple[Path]]:
        return type(self), (self.path,)


def _vocabulary(tokenizer: Any) -> str:
    """All that decides about the tokens of plain words: special tokens do not, since none is ever read from text."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    return json.dumps(content)
