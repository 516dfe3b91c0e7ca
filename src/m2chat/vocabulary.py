"""Tokenizers of LLaMA-architecture models, in the three forms in which their folders have them.

``tokenizer.model`` is a sentencepiece model (LLaMA 1 and 2) or Meta's list of byte sequences (Llama 3, read by
tiktoken); ``tokenizer.json`` is a fast tokenizer (SmolLM2, TinyLlama, Llama 3 by transformers).

Text never becomes a special token, in any of them: what is typed as ``</s>`` is three or four ordinary pieces.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from m2chat.errors import UserError
from m2chat.integrity import verify_listed
from m2chat.tokenizer_settings import DESCRIPTIONS, MARKUP, FolderSettings, Role, folder_settings

_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n?")
"""A line of Meta's file: a byte sequence and its rank."""
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words before merging bytes (its model card; transformers has the same)."""
_LLAMA3_SPECIAL = {
    "<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|finetune_right_pad_id|>": 4, "<|start_header_id|>": 6,
    "<|end_header_id|>": 7, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10,
}  # fmt: skip
"""Places behind the ranks of the special tokens that Llama 3.1 names."""
_LLAMA3_RESERVED = 256


class Vocabulary(Protocol):
    """A tokenizer without its special tokens, and these by name.

    Attributes:
        size: Its largest number and one.
        specials: Numbers of the tokens that text never becomes, by spelling.
        roles: Numbers of special tokens by role, as the tokenizer itself has them.
    """

    size: int
    specials: dict[str, int]
    roles: dict[Role, int]

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Tokens of plain text.

        Args:
            text: Plain text.
            behind: Whether a special token stands before it: then most tokenizers put no space in front.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens that are not special."""


class SentencePieceVocabulary:
    """A sentencepiece model.

    Args:
        path: ``tokenizer.model``.
        settings: What stands beside it.
    """

    def __init__(self, path: Path, settings: FolderSettings) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is neither a sentencepiece model nor Meta's list of ranks: {error}") from None
        processor = self._processor
        count = int(processor.vocab_size())
        unusable = {i for i in range(count) if processor.is_control(i) or processor.is_unknown(i)}
        specials = {str(processor.id_to_piece(i)): i for i in unusable}
        markup = {str(processor.id_to_piece(i)): i for i in range(count) if not processor.is_byte(i)}
        names = {*settings.names.values(), *(name for name in markup if MARKUP.fullmatch(name))}
        # Symbols that the trainer was given are matched in any text, unlike control pieces.
        matched = {name for name in names & markup.keys() - specials.keys() if markup[name] in processor.encode(name)}
        if matched:
            matched = self._as_control(path, matched, set(settings.names.values()))
        self.specials = {**settings.added, **specials, **{name: markup[name] for name in matched}}
        self.size = max(count, *(number + 1 for number in self.specials.values()))
        roles = {"bos": processor.bos_id(), "eos": processor.eos_id(), "unk": processor.unk_id(), "pad": 0}
        self.roles = {role: int(number) for role, number in roles.items() if number >= 0}
        self._behind = self._processor if settings.legacy else self._without_prefix()

    def _without_prefix(self) -> Any:
        """The same model, which puts no space before a text."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(self._processor.serialized_model_proto())
        model.normalizer_spec.add_dummy_prefix = False
        return SentencePieceProcessor(model_proto=model.SerializeToString())

    def _as_control(self, path: Path, names: set[str], named: set[str]) -> set[str]:
        """Makes pieces unreachable for text if they are user-defined symbols or have a role; returns their names."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        hidden = set()
        for piece in model.pieces:
            if piece.piece in names and (piece.type == kinds.USER_DEFINED or piece.piece in named):
                piece.type = kinds.CONTROL
                hidden.add(str(piece.piece))
        if hidden:
            self._processor = SentencePieceProcessor(model_proto=model.SerializeToString())
        return hidden

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Tokens of plain text."""
        tokens: list[int] = (self._behind if behind else self._processor).encode(text)
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens that are not special."""
        return str(self._processor.decode(list(ids)))


class FastVocabulary:
    """A ``tokenizer.json``, read by the `tokenizers` library.

    The library looks for added tokens in every text, and a vocabulary that has ``</s>`` among its pieces can make it of
    text too. Therefore the special ones get names that nobody can type.

    Args:
        path: ``tokenizer.json``.
        settings: What stands beside it.
    """

    def __init__(self, path: Path, settings: FolderSettings) -> None:
        from tokenizers import Tokenizer

        try:
            data = {"added_tokens": [], **json.loads(path.read_text(encoding="utf-8"))}
            words = data["model"]["vocab"]  # numbers by spelling, or a list of spellings with their scores
            everything = dict(words) if isinstance(words, dict) else {name: i for i, (name, _) in enumerate(words)}
            added = {str(token["content"]): token for token in data["added_tokens"]}
            everything |= {name: int(token["id"]) for name, token in added.items()}
            special = {name for name, token in added.items() if token.get("special") or MARKUP.fullmatch(name)}
            special |= {*settings.added, *settings.names.values()}
            # A description that nobody adapted may have the numbers of another tokenizer: those of plain words.
            special |= {name for name, n in everything.items() if n in settings.ids.values() and MARKUP.fullmatch(name)}
            self.specials = {**settings.added, **{name: int(everything[name]) for name in special & everything.keys()}}
            self.size = 1 + max(*everything.values(), *self.specials.values())
            plain = _without(data, self.specials)
            self._tokenizer: Any = Tokenizer.from_str(json.dumps(plain))
            inner = _without_prefix(plain)
            self._behind = self._tokenizer if inner is None else Tokenizer.from_str(json.dumps(inner))
            # What the library raises for a damaged file is a plain Exception.
        except Exception as error:
            raise UserError(f"{path} is not a tokenizer: {error}. Copy or download it again") from None
        for tokenizer in (self._tokenizer, self._behind):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        unknown = data["model"].get("unk_token")
        self.roles = {"unk": self.specials[unknown]} if unknown in self.specials else {}

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Tokens of plain text."""
        return list((self._behind if behind else self._tokenizer).encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens that are not special."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _without(data: Mapping[str, Any], specials: Iterable[str]) -> dict[str, Any]:
    """A tokenizer's description whose special tokens can be reached by no text."""
    secret = secrets.token_hex(16)
    renamed = {name: f"{secret} {index}" for index, name in enumerate(specials)}
    model = dict(data["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {renamed.get(name, name): number for name, number in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):  # pieces with their scores
        model["vocab"] = [[renamed.get(name, name), score] for name, score in model["vocab"]]
    if "merges" in model:
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not renamed.keys() & {*pair, "".join(pair)}]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    # They stay in the list, because the library numbers those that its vocabulary lacks one behind the other.
    added = [{**token, "content": renamed.get(token["content"], token["content"])} for token in data["added_tokens"]]
    return {**data, "model": model, "added_tokens": added, "post_processor": None}


def _without_prefix(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description of a tokenizer that puts a space before the first text alone, as of any other text; else None."""
    outer = data.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    if not any(step.get("prepend_scheme") == "first" for step in steps):
        return None
    steps = [{**step, "prepend_scheme": "never"} if "prepend_scheme" in step else step for step in steps]
    return {**data, "pre_tokenizer": {**outer, "pretokenizers": steps} if "pretokenizers" in outer else steps[0]}


class RankedVocabulary:
    """Llama 3's tokenizer file: byte sequences with their ranks, and 256 special tokens behind them.

    Args:
        path: ``tokenizer.model``.
    """

    def __init__(self, path: Path) -> None:
        from tiktoken import Encoding

        try:
            lines = (line.split() for line in path.read_bytes().splitlines() if line)
            ranks = {base64.b64decode(word, validate=True): int(rank) for word, rank in lines}
        except ValueError as error:
            raise UserError(f"{path} is not a list of byte sequences and ranks: {error}. Copy it again") from None
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise UserError(f"{path}: its ranks have gaps, so it is cut off or damaged. Copy it again")
        count = len(ranks)
        self.specials = {name: count + place for name, place in _LLAMA3_SPECIAL.items()}
        taken = {*_LLAMA3_SPECIAL.values()}
        free = (place for place in range(_LLAMA3_RESERVED) if place not in taken)
        self.specials |= {f"<|reserved_special_token_{i}|>": count + place for i, place in enumerate(free)}
        self.size = count + _LLAMA3_RESERVED
        self.roles = {"bos": count, "eos": count + 1, "pad": count + 4}
        self._encoding = Encoding(path.name, pat_str=_LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Tokens of plain text."""
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens that are not special."""
        return self._encoding.decode(list(ids))


def tokenizer_file(folder: Path) -> Path | None:
    """The file of a folder's tokenizer: ``tokenizer.model`` before ``tokenizer.json``, Meta's may lie one level up."""
    places = [folder / "tokenizer.model", folder / "tokenizer.json"]
    if (folder / "params.json").is_file():
        places.append(folder.parent / "tokenizer.model")
    return next((place for place in places if place.is_file()), None)


def open_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokenizer of a language model's folder; None if there is none.

    Raises:
        UserError: If its file is damaged.
    """
    if (path := tokenizer_file(folder)) is None:
        return None
    verify_listed([path])
    read = (path, *(folder / name for name in DESCRIPTIONS))
    return _opened(path, folder, *((s.st_mtime_ns, s.st_size) for s in (p.stat() for p in read if p.is_file())))


@lru_cache(maxsize=4)
def _opened(path: Path, folder: Path, *_: tuple[int, int]) -> Vocabulary:
    """Opens it once in a process, as long as no file that it is read from changes."""
    settings = folder_settings(folder)
    if path.name == "tokenizer.json":
        return FastVocabulary(path, settings)
    with path.open("rb") as file:
        is_ranked = _RANK.fullmatch(file.readline(1000)) is not None
    return RankedVocabulary(path) if is_ranked else SentencePieceVocabulary(path, settings)


def first_added(folder: Path, rows: int | None = None) -> int:
    """Number of the first token that is added to a language model: behind its table and behind its tokenizer.

    Args:
        folder: The language model's folder.
        rows: Rows of its table; None takes those of the description.

    Raises:
        UserError: If text can become a token for which the table has no row, or the description has another number of
            rows than the table, so that tokenizer and network would add tokens at different places.
    """
    vocabulary, described = open_vocabulary(folder), folder_settings(folder).rows
    if vocabulary is None:
        return rows or described or 0
    size = vocabulary.size
    if rows is not None and rows != (described or size):
        states = f"states vocab_size {described}" if described else f"leaves it to the tokenizer, which has {size}"
        raise UserError(
            f"{folder}: the network's table has {rows} rows, but its description {states}: "
            f'set "vocab_size": {rows} in it, or use the tokenizer that belongs to this network'
        )
    rows = rows or described or size
    special = set(vocabulary.specials.values())
    if lost := [number for number in range(rows, size) if number not in special]:
        raise UserError(
            f"{folder}: its tokenizer ({tokenizer_file(folder)}) has {size} words and the network's table {rows} rows: "
            f"{len(lost)} words have none. Use the tokenizer that belongs to this network"
        )
    return max(rows, size)
