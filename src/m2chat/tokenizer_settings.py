"""What the files beside a tokenizer state: special tokens, chat template, rows of the network's table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.integrity import verify_listed

MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]", re.DOTALL)
"""How special tokens are spelled; an added token without this form and without a mark is text, such as two spaces."""

DESCRIPTIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json", "generation_config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Files beside a tokenizer that say which of its tokens are special, and how a conversation is written."""

Role = str
"""``bos``, ``eos``, ``pad`` or ``unk``."""


@dataclass(frozen=True)
class FolderSettings:
    """What the descriptions beside a tokenizer say.

    Args:
        names: Spelling of special tokens by role.
        ids: Number of special tokens by role, from the network's description.
        added: Numbers of tokens that were added behind the vocabulary, by spelling, if they are special.
        chat_template: The model's template of a conversation (Jinja), if it has one.
        add_bos: Whether a plain text begins with the start token; None if the folder does not say.
        rows: Rows of the network's table as described; None if the description leaves it to the tokenizer.
        legacy: Whether sentencepiece puts a space before every text, behind special tokens too; transformers' default
            is before the first text alone.
    """

    names: Mapping[Role, str] = field(default_factory=dict)
    ids: Mapping[Role, int] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    add_bos: bool | None = None
    rows: int | None = None
    legacy: bool = False


def folder_settings(folder: Path) -> FolderSettings:
    """Reads the descriptions in a language model's folder; each of them may be missing.

    Raises:
        UserError: If one is damaged.
    """
    settings, network = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    network = {**network, **{k: v for k, v in _json(folder / "generation_config.json").items() if k not in network}}
    roles = ("bos", "eos", "pad", "unk")
    spelled = {**_json(folder / "special_tokens_map.json"), **settings}
    names = {role: _spelling(spelled.get(f"{role}_token")) for role in roles}
    ids = {role: _first(network.get(f"{role}_token_id")) for role in roles}
    added = {str(name): int(number) for name, number in _json(folder / "added_tokens.json").items()}
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        if token.get("special") or MARKUP.fullmatch(token["content"]):
            added[token["content"]] = int(number)
    meta = next((place for place in (folder, folder / "7B") if (place / "params.json").is_file()), folder)
    rows = network.get("vocab_size") or _json(meta / "params.json").get("vocab_size")
    return FolderSettings(
        {role: name for role, name in names.items() if name},
        {role: number for role, number in ids.items() if number is not None},
        added,
        _chat_template(folder, settings),
        settings.get("add_bos_token"),
        rows if rows and rows > 0 else None,
        bool(settings.get("legacy")),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    verify_listed([path])
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again") from None
    return data if isinstance(data, dict) else {}


def _spelling(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _first(number: Any) -> int | None:
    return (number[0] if number else None) if isinstance(number, list) else number


def _chat_template(folder: Path, description: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        verify_listed([path])
        return path.read_text(encoding="utf-8")
    template = description.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template or None
