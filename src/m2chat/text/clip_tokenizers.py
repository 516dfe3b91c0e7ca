"""Tokenizers of the image decoder's text encoders: from its folder, or OpenAI's, since SDXL in one file has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2chat.errors import UserError
from m2chat.integrity import verify_folder

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH = 77
_FILES = ("vocab.json", "merges.txt")
"""Files of a tokenizer without ``tokenizer.json``."""


def clip_tokenizers(image_decoder: Path) -> list[Any]:
    """A `CLIPTokenizer` of transformers for each text encoder.

    Args:
        image_decoder: A diffusers folder with ``tokenizer`` and, as SDXL has it, ``tokenizer_2``; or SDXL in one file.

    Raises:
        UserError: If it is a folder without ``tokenizer``, or neither, or a list says that a file is damaged.
    """
    from transformers import CLIPTokenizer

    require_tokenizers(image_decoder)
    if image_decoder.is_file():
        return openai_tokenizers()
    folders = [image_decoder / name for name in ("tokenizer", "tokenizer_2")]
    for folder in folders:
        verify_folder(folder)
    return [CLIPTokenizer.from_pretrained(folder) for folder in folders if folder.is_dir()]


def require_tokenizers(image_decoder: Path) -> None:
    """Checks that there are tokenizers, before anything large is loaded.

    Raises:
        UserError: If it is neither a folder with ``tokenizer`` nor a file, or a tokenizer lacks its files.
    """
    for folder in (image_decoder / "tokenizer", image_decoder / "tokenizer_2"):
        whole = (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in _FILES)
        if folder.is_dir() and not whole:
            raise UserError(
                f"image_decoder={str(image_decoder)!r}: {folder} lacks {' and '.join(_FILES)}: copy them from the "
                "folder that it was downloaded from"
            )
    if not image_decoder.is_file() and not (image_decoder / "tokenizer").is_dir():
        raise UserError(
            f"image_decoder={str(image_decoder)!r} has no folder `tokenizer`: give a folder as diffusers saves it, or "
            "SDXL in one .safetensors file"
        )


def openai_tokenizers() -> list[Any]:
    """SDXL's two tokenizers, from the merges in open_clip's package; they differ in the padding token."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    special = dict(zip(("<|startoftext|>", "<|endoftext|>"), (simple.sot_token_id, simple.eot_token_id), strict=True))
    words = {word: number for word, number in simple.encoder.items() if number not in special.values()}
    merges = list(simple.bpe_ranks)
    return [
        CLIPTokenizer(vocab=words | special, merges=merges, pad_token=pad, model_max_length=_LENGTH)
        for pad in ("<|endoftext|>", "!")
    ]


class CaptionTokens:
    """Tokens of captions for the image decoder's text encoders, loaded at the first use.

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
        import torch  # here: what counts and shows tokens must start quickly

        first, *second = self._tokenizers()
        rows = self._encode(first, captions)
        ids = self._padded(first, rows)
        if not second:
            return ids, torch.zeros_like(ids)
        return ids, self._padded(second[0], rows if self._alike else self._encode(second[0], captions))

    @staticmethod
    def _encode(tokenizer: Any, captions: Sequence[str]) -> list[list[int]]:
        # The backend is called directly, since transformers' call takes a third longer; and for one caption at a time,
        # since a batch would be spread over threads, which takes longer for short texts and must not happen in a
        # forked worker process.
        encode = tokenizer.backend_tokenizer.encode
        return [encode(caption).ids for caption in captions]

    @staticmethod
    def _padded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of different lengths as one tensor, padded to Q, (B, Q)."""
        import torch

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
                # `<|endoftext|>` in a caption must become plain tokens, or the encoder would pool in the middle of it.
                backend.encode_special_tokens = True
            # SDXL's two differ only in padding: then a caption is encoded once.
            self._alike = len({_vocabulary(tokenizer) for tokenizer in self._loaded}) == 1
        return self._loaded

    def __reduce__(self) -> tuple[type[CaptionTokens], tuple[Path]]:
        return type(self), (self.path,)


def _vocabulary(tokenizer: Any) -> str:
    """The settings that decide the tokens of plain text; special tokens do not, since text is never parsed for them."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    return json.dumps(content)
