"""Tokenizers of the image decoder's text encoders: its folder's or, as SDXL in one file has none, OpenAI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.integrity import verify_folder

_LENGTH = 77


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
    """Says at once, before anything large is loaded, that there are no tokenizers.

    Raises:
        UserError: If it is neither a folder with ``tokenizer`` nor a file.
    """
    if not image_decoder.is_file() and not (image_decoder / "tokenizer").is_dir():
        raise UserError(
            f"image_decoder={str(image_decoder)!r} has no folder `tokenizer`: give a folder as diffusers saves it, or "
            "SDXL in one .safetensors file"
        )


def openai_tokenizers() -> list[Any]:
    """SDXL's two tokenizers, from the merges that open_clip brings along; they differ in what they pad with."""
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
