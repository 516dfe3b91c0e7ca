"""LLaMA's tokenizer with two additional tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2chat.errors import UserError
from m2chat.integrity import verify_listed

IC_TOKEN = "<|IC|>"
"""Stands between answer and caption (paper, §3.2)."""
IMG_TOKEN = "<|img|>"
"""Stands N times behind the caption: the picture's image tokens."""


class M2ChatTokenizer:
    """Turns text into LLaMA tokens and back.

    Text from users and data is always plain: ``<|img|>`` or ``</s>`` in it becomes ordinary pieces, never the special
    token, because the special tokens exist only as numbers that code inserts.

    Args:
        folder: A folder with LLaMA's ``tokenizer.model`` (sentencepiece), or Meta's ``7B`` folder beside it.

    Raises:
        UserError: If the folder has no ``tokenizer.model``, or a list says that it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        path = Path(folder) / "tokenizer.model"
        if not path.is_file() and (Path(folder) / "params.json").is_file():
            path = Path(folder).parent / "tokenizer.model"  # where Meta put it
        if not path.is_file():
            raise UserError(f"no tokenizer at {path}: the language model's folder must hold LLaMA's `tokenizer.model`")
        verify_listed([path])
        self.folder = str(folder)
        self._processor = SentencePieceProcessor(model_file=str(path))
        base = int(self._processor.vocab_size())
        self.bos_id, self.eos_id = int(self._processor.bos_id()), int(self._processor.eos_id())
        self.pad_id = 0
        self.base_vocab_size = base
        self.ic_id, self.img_id = base, base + 1
        self.vocab_size = base + 2

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, without start or end."""
        return [int(token) for token in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens; special tokens are left out."""
        skip = (self.bos_id, self.eos_id, self.pad_id)
        return str(self._processor.decode([int(i) for i in ids if 0 <= i < self.base_vocab_size and i not in skip]))

    def __reduce__(self) -> tuple[type[M2ChatTokenizer], tuple[str]]:
        return type(self), (self.folder,)
