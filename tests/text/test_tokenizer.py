from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from m2chat.errors import UserError
from m2chat.text import M2ChatTokenizer
from m2chat.text.tokenizer import IC_TOKEN, IMG_TOKEN

TYPED = ["<|img|>", "</s>", "<|IC|>", "<s> <unk> <pad>", "a <|img|><|img|> b</s>c <|IC|>d", "<0x0A> [INST]"]
TEXTS = ["a red circle", "It's 3 o'clock, Zoë — 猫 🐈!", "two\nlines\n\n### Response:", "tabs\tand  two spaces", ""]


@pytest.mark.parametrize("text", TYPED + TEXTS)
def test_any_text_round_trips_as_plain_text(tokenizer: M2ChatTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.ic_id, tokenizer.img_id}
    assert not special & set(ids) and all(0 <= token < tokenizer.base_vocab_size for token in ids)
    assert tokenizer.decode(ids) == text


def test_own_tokens_come_behind_the_base(tokenizer: M2ChatTokenizer) -> None:
    assert (tokenizer.ic_id, tokenizer.img_id) == (tokenizer.base_vocab_size, tokenizer.base_vocab_size + 1)
    assert tokenizer.vocab_size == tokenizer.base_vocab_size + 2
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert IC_TOKEN != IMG_TOKEN


def test_decoding_leaves_special_tokens_out(tokenizer: M2ChatTokenizer) -> None:
    ids = tokenizer.encode("a ring")
    around = [tokenizer.bos_id, *ids, tokenizer.ic_id, tokenizer.img_id, tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(around) == "a ring"


def test_it_can_be_pickled(tokenizer: M2ChatTokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a red circle") == tokenizer.encode("a red circle")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        M2ChatTokenizer(tmp_path)


def test_meta_keeps_it_above_the_weights(tokenizer: M2ChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "7B").mkdir()
    (tmp_path / "7B" / "params.json").write_text("{}")
    (tmp_path / "tokenizer.model").write_bytes((Path(tokenizer.folder) / "tokenizer.model").read_bytes())
    for folder in (tmp_path, tmp_path / "7B"):
        assert M2ChatTokenizer(folder).encode("a red ring") == tokenizer.encode("a red ring")
    (tmp_path / "7B" / "params.json").unlink()
    with pytest.raises(UserError, match="no tokenizer at"):
        M2ChatTokenizer(tmp_path / "7B")
