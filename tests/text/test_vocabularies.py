from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from bases import CHATML, TEXTS, fast_tokenizer, write_fast, write_pieces, write_ranks, write_unigram
from m2chat.errors import UserError
from m2chat.text import M2ChatTokenizer


def chat_pieces(folder: Path) -> Path:
    """Sentencepiece with user-defined symbols, which it looks for in every text, and tokens added beside it."""
    write_pieces(folder, ("<|user|>", "<|end|>"))
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 642, "<|im_end|>": 643}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def with_added(folder: Path) -> Path:
    """A fast tokenizer with tokens that nobody marked as special, and runs of spaces that are added tokens and text."""
    made = fast_tokenizer()
    made.add_tokens([AddedToken("<tool_call>"), AddedToken("    ", normalized=False), AddedToken("[INST]")])
    return write_fast(folder, made)


def ignoring_merges(folder: Path) -> Path:
    """As Llama 3's: a word that is in the vocabulary is a token, whatever its merges say."""
    data = json.loads(fast_tokenizer().to_str())
    data["model"]["ignore_merges"] = True
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    write_fast(folder)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "sentencepiece": write_pieces,
    "sentencepiece of a chat model": chat_pieces,
    "tokenizer.json": write_fast,
    "tokenizer.json with added tokens": with_added,
    "tokenizer.json that ignores merges": ignoring_merges,
    "tokenizer.json of a unigram model": write_unigram,
    "Llama 3's ranks": write_ranks,
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, M2ChatTokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: M2ChatTokenizer(write(root / str(i))) for i, (name, write) in enumerate(FORMS.items())}


MARKS = [
    "<|img|>", "<|IC|>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|user|>", "<|end|>",
    "<tool_call>", "[INST]", "<0x0A>", "<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_3|>", "    ",
    "▁", "Ġ",
]  # fmt: skip
texts = st.lists(st.sampled_from(MARKS) | st.text(max_size=12), max_size=6).map("".join)


@given(texts)
@settings(max_examples=150, deadline=None)
def test_text_never_becomes_a_special_token(tokenizers: dict[str, M2ChatTokenizer], text: str) -> None:
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.encode(text)
        special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.ic_id, tokenizer.img_id}
        special |= {number for mark in MARKS for number in tokenizer.split_special(mark) if isinstance(number, int)}
        assert not special & set(ids), name
        assert all(0 <= token < tokenizer.base_vocab_size for token in ids), name
        if "sentencepiece" not in name and "unigram" not in name:  # those fold characters and spaces at the start
            assert tokenizer.decode(ids) == text, name
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.ic_id, tokenizer.img_id, tokenizer.eos_id]) == (
            tokenizer.decode(ids)
        ), name


@pytest.mark.parametrize("name", FORMS)
def test_plain_texts_come_back_and_pickles_are_equal(tokenizers: dict[str, M2ChatTokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    again = pickle.loads(pickle.dumps(tokenizer))
    for text in [*TEXTS, "Zoë — 猫 🐈", "tabs\tand <|img|> </s>"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("sentencepiece", "<s>a</s>", [1, "a", 2]),
        ("sentencepiece of a chat model", "<|im_start|>user\n<|end|>", [642, "user\n", 641]),
        ("tokenizer.json", "<|im_start|>user\na<|im_end|>\n", [1, "user\na", 2, "\n"]),
        ("tokenizer.json with added tokens", "[INST] a", [312, " a"]),
        ("tokenizer.json of a unigram model", "a</s>", ["a", 2]),
        (
            "Llama 3's ranks",
            "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>",
            [275, "user", 276, "\n\na", 278],
        ),
    ],
)
def test_templates_mean_their_special_tokens(
    tokenizers: dict[str, M2ChatTokenizer], name: str, template: str, expected: list[str | int]
) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.split_special(template) == expected
    plain = [tokenizer.encode(part, n > 0) if isinstance(part, str) else [part] for n, part in enumerate(expected)]
    assert tokenizer.special_ids(template) == [token for part in plain for token in part]


def test_llama_3_s_file_is_read_as_transformers_reads_it(tokenizers: dict[str, M2ChatTokenizer]) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    tokenizer = tokenizers["Llama 3's ranks"]
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    theirs = TikTokenConverter(f"{tokenizer.folder}/tokenizer.model", pattern=pattern).converted()
    for text in [*TEXTS, "the red thing is 1234567\n\n\nin", " <|img|> é 猫"]:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert (tokenizer.bos_id, tokenizer.eos_id) == (269, 270) and tokenizer.pad_id not in tokenizer.encode("!")


def test_where_the_chat_template_is_found(tmp_path: Path) -> None:
    assert M2ChatTokenizer(write_fast(tmp_path / "a")).chat_template == CHATML
    several = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]
    assert M2ChatTokenizer(write_fast(tmp_path / "b", chat_template=several)).chat_template == "y"
    (write_fast(tmp_path / "c") / "chat_template.jinja").write_text("z")
    assert M2ChatTokenizer(tmp_path / "c").chat_template == "z"
    assert M2ChatTokenizer(write_fast(tmp_path / "d", chat_template=None)).chat_template is None


def test_what_is_wrong_with_a_tokenizer_is_said(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "a", eos_token=None)
    with pytest.raises(UserError, match=r"nothing says which token ends a text: add eos_token to tokenizer_config"):
        M2ChatTokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [2, 0], "bos_token_id": 1, "vocab_size": 400}))
    assert M2ChatTokenizer(folder).eos_id == 2
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 20, "bos_token_id": 21, "vocab_size": 400}))
    with pytest.raises(UserError, match="nothing says"):  # these are numbers of plain words
        M2ChatTokenizer(folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:-200])
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        M2ChatTokenizer(folder)
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01not a model")
    with pytest.raises(UserError, match=r"is neither a sentencepiece model nor Meta's list of ranks"):
        M2ChatTokenizer(tmp_path)
    path = write_ranks(tmp_path / "r") / "tokenizer.model"
    path.write_bytes(b"".join([*path.read_bytes().splitlines(keepends=True)[:40], b"YQ== 99\n"]))
    with pytest.raises(UserError, match=r"its ranks have gaps, so it is cut off or damaged"):
        M2ChatTokenizer(tmp_path / "r")
