"""The tokenizers of the image decoder's text encoders, for drawing by its own words and for alignment targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError


class CaptionTokens:
    """The tokenizers of the image decoder's text encoders.

    Args:
        image_decoder: A diffusers folder with ``tokenizer`` and, as SDXL has it, ``tokenizer_2``.

    Raises:
        UserError: If there is no ``tokenizer``.
    """

    def __init__(self, image_decoder: str | Path) -> None:
        self.folder = Path(image_decoder)
        if not (self.folder / "tokenizer").is_dir():
            raise UserError(
                f"image_decoder={str(image_decoder)!r} has no folder `tokenizer`: give a folder as diffusers saves it"
            )
        self._loaded: list[Any] = []

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens for the first and the second text encoder, (B, Q) each; zeros where there is no second."""
        ids = [self._encode(tokenizer, captions) for tokenizer in self._tokenizers()]
        return ids[0], ids[1] if len(ids) > 1 else torch.zeros_like(ids[0])

    @staticmethod
    def _encode(tokenizer: Any, captions: Sequence[str]) -> Tensor:
        # Below transformers' own call, which costs a third more: these are small, and there are many.
        return torch.tensor([row.ids for row in tokenizer.backend_tokenizer.encode_batch_fast(list(captions))])

    def _tokenizers(self) -> list[Any]:
        if not self._loaded:
            from transformers import CLIPTokenizer

            folders = [self.folder / name for name in ("tokenizer", "tokenizer_2")]
            self._loaded = [CLIPTokenizer.from_pretrained(folder) for folder in folders if folder.is_dir()]
            for tokenizer in self._loaded:
                backend, length = tokenizer.backend_tokenizer, tokenizer.model_max_length
                backend.enable_truncation(length)
                backend.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
                # A caption that spells `<|endoftext|>` must stay words, or the encoder would pool in its middle.
                backend.encode_special_tokens = True
        return self._loaded

    def __reduce__(self) -> tuple[type[CaptionTokens], tuple[Path]]:
        return type(self), (self.folder,)
