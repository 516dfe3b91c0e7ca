"""The language model's tokenizer with two additional tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from m2chat.errors import UserError
from m2chat.tokenizer_settings import folder_settings
from m2chat.vocabulary import first_added, open_vocabulary

IC_TOKEN = "<|IC|>"
"""Stands between answer and caption (paper, §3.2)."""
IMG_TOKEN = "<|img|>"
"""Stands N times behind the caption: the picture's image tokens."""


class M2ChatTokenizer:
    """Turns text into tokens of the language model and back.

    Text from users and data is always plain: ``<|img|>`` or ``</s>`` in it becomes ordinary pieces, never the special
    token, because the special tokens exist only as numbers that code inserts.

    Args:
        folder: A language model's folder: with ``tokenizer.model`` (sentencepiece, or Llama 3's list of ranks) or
            ``tokenizer.json``; Meta's ``7B`` folder may have it beside it.

    Attributes:
        bos_id: The start token.
        eos_id: The end of a text; of a chat model, the end of a turn.
        pad_id: Fills batches; a special token, so that no text is lost with it.
        ic_id: ``<|IC|>``.
        img_id: ``<|img|>``.
        base_vocab_size: Size of the tokenizer as it came.
        vocab_size: Number of logits: of the network's table, or of the tokenizer if that is larger, and the two.
        chat_template: The folder's template of a conversation (Jinja); None if it has none.
        adds_bos: Whether the model's texts begin with `bos_id`, by the folder's description; True if it does not say.

    Raises:
        UserError: If the folder has no tokenizer, it does not fit the network in it, has no end token, or a list says
            that it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder)
        vocabulary = open_vocabulary(root)
        if vocabulary is None:
            raise UserError(
                f"no tokenizer at {root / 'tokenizer.model'} or {root / 'tokenizer.json'}: the language model's folder "
                "must hold one of the two"
            )
        self.folder = str(folder)
        self._vocabulary, settings = vocabulary, folder_settings(root)
        self.chat_template = settings.chat_template
        self.adds_bos = settings.add_bos is not False
        self.base_vocab_size = vocabulary.size
        self.ic_id = first_added(root)
        self.img_id = self.ic_id + 1
        self.vocab_size = self.ic_id + 2
        self._specials = dict(vocabulary.specials)
        self._special_ids = frozenset(self._specials.values())
        rows = settings.rows or vocabulary.size
        named = {role: self._specials[name] for role, name in settings.names.items() if name in self._specials}
        known = {**settings.ids, **vocabulary.roles, **named}
        roles = {role: number for role, number in known.items() if number < rows and number in self._special_ids}
        if "eos" not in roles:
            raise UserError(
                f"{folder}: nothing says which token ends a text: add eos_token to tokenizer_config.json, as the "
                "model's publisher has it"
            )
        self.eos_id = roles["eos"]
        self.bos_id = roles.get("bos", self.eos_id)
        self.pad_id = roles.get("pad", roles.get("unk", self.eos_id))

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Tokens of plain text, without start or end; none of them is special.

        Args:
            text: Plain text.
            behind: Whether it follows a special token of a chat template: then most tokenizers put no space in front.
        """
        return self._vocabulary.encode(text, behind)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens; special tokens are left out."""
        size, special = self.base_vocab_size, self._special_ids
        return self._vocabulary.decode([int(i) for i in ids if 0 <= i < size and i not in special])

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Numbers of the tokens that text never becomes, by spelling; without the two of ours."""
        return self._specials

    def split_special(self, text: str) -> list[str | int]:
        """A template's text as plain parts and the numbers of the special tokens between them.

        For text of the folder's own templates, never for text of people or data. A caller who puts such text between
        the parts should join neighbouring plain parts before encoding them, since tokenizers treat a text's start
        differently from its middle.
        """
        if not self._specials or not text:
            return [text] if text else []
        names = sorted(self._specials, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [self._specials[part] if i % 2 else part for i, part in enumerate(parts) if part]

    def special_ids(self, text: str) -> list[int]:
        """Tokens of a template's text, in which special tokens such as ``<|im_start|>`` are meant.

        For text of the folder's own templates, never for text of people or data: that is what `encode` is for.
        """
        parts = self.split_special(text)
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.encode(part, bool(ids))
        return ids

    def __reduce__(self) -> tuple[type[M2ChatTokenizer], tuple[str]]:
        return type(self), (self.folder,)
