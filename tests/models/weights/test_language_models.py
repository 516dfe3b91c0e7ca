from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from bases import (
    MICRO,
    PROMPTS,
    RANKED_WORDS,
    WORDS,
    fast_tokenizer,
    network,
    write_adapter,
    write_fast,
    write_gguf,
    write_meta,
    write_pieces,
    write_ranks,
)
from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.models.build import load_language
from m2chat.models.config import BackboneConfig
from m2chat.text import M2ChatTokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def language(folder: Path, adapter: Path) -> Any:
    return load_language(BackboneConfig(str(folder), str(adapter), "", "", 8))[0].eval()


def meta_folder(root: Path) -> LlamaForCausalLM:
    made = network(WORDS)
    write_meta(made, root / "7B", vocab_size=-1, multiple_of=32)
    write_pieces(root)
    return made


def untied_shards(root: Path) -> LlamaForCausalLM:
    made = network(WORDS)
    made.save_pretrained(root, max_shard_size="200KB")
    assert len(list(root.glob("model-*.safetensors"))) > 1
    write_pieces(root)
    return made


def tied_with_groups(root: Path) -> LlamaForCausalLM:
    made = network(310, kv_heads=2, head_dim=20, tie_word_embeddings=True)
    made.save_pretrained(root)
    assert "lm_head.weight" not in load_file(root / "model.safetensors")
    write_fast(root)
    return made


def one_more_row(root: Path) -> LlamaForCausalLM:
    """A padding token was added behind the tokenizer: 32,001 rows at full size. Saved as pickled shards."""
    made = network(WORDS + 1, pad_token_id=WORDS)
    made.save_pretrained(root)
    state = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for shard, keys in shards.items():
        torch.save({key: state[key] for key in keys}, root / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (root / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    write_pieces(root)
    (root / "added_tokens.json").write_text(json.dumps({"[PAD]": WORDS}))
    return made


def llama3_folder(root: Path) -> LlamaForCausalLM:
    made = network(RANKED_WORDS, kv_heads=2, rope_parameters=LLAMA3_ROPE)
    params = {"n_kv_heads": 2, "vocab_size": RANKED_WORDS, "rope_theta": 500000.0, "use_scaled_rope": True}
    write_ranks(write_meta(made, root / "original", **params))
    return made


def gguf_file(root: Path) -> LlamaForCausalLM:
    made = network(400, kv_heads=2, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True)
    write_gguf(made, fast_tokenizer(), root / "small.gguf")
    assert main(["weights", "convert", str(root / "small.gguf"), str(root / "converted")]) == 0
    return made


BASES: dict[str, tuple[Callable[[Path], LlamaForCausalLM], str]] = {
    "Meta's LLaMA 1": (meta_folder, ""),
    "untied, in shards": (untied_shards, ""),
    "tied, grouped, tokenizer.json": (tied_with_groups, ""),
    "one more row, .bin": (one_more_row, ""),
    "Meta's Llama 3.1": (llama3_folder, "original"),
    "GGUF": (gguf_file, "converted"),
}


@pytest.mark.parametrize("name", BASES)
def test_without_its_adapter_every_base_is_transformers_own_llama(name: str, tmp_path: Path) -> None:
    make, folder = BASES[name]
    theirs = make(tmp_path)
    ours = language(tmp_path / folder, write_adapter(tmp_path / "a.pth"))
    tokenizer = M2ChatTokenizer(tmp_path / folder)
    rows, size = theirs.config.vocab_size, tokenizer.base_vocab_size
    assert tokenizer.ic_id == ours.lm_head.start == max(rows, size), "behind the table and behind the tokenizer"
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("I'm hungry, it's 12345 o'clock! A red circle")]])
    with torch.no_grad():
        logits, expected = ours(ids).logits, theirs(ids).logits
        assert logits.shape[-1] == tokenizer.vocab_size
        torch.testing.assert_close(logits[..., :rows], expected, atol=5e-5, rtol=0)
        assert expected.std() > 0.1
        greedy = theirs.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        for _ in range(8):
            ids = torch.cat([ids, ours(ids).logits[:, -1:, :rows].argmax(-1)], 1)
    assert torch.equal(ids, greedy)
    with torch.no_grad():
        added = ours(torch.tensor([[tokenizer.ic_id, tokenizer.img_id]])).logits
    assert added.isfinite().all(), "the added tokens have rows"


def test_a_cached_step_equals_the_whole_pass_with_the_adapter_on_and_grouped_heads(tmp_path: Path) -> None:
    tied_with_groups(tmp_path)
    llama = language(tmp_path, write_adapter(tmp_path / "a.pth", gate=0.7))
    tokenizer = M2ChatTokenizer(tmp_path)
    ids = torch.tensor([[*tokenizer.encode("a red circle"), tokenizer.ic_id, tokenizer.img_id, tokenizer.img_id]])
    seen = torch.randn(1, PROMPTS, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = llama(ids, visual_query=seen).logits
        step = llama(ids[:, :3], visual_query=seen, use_cache=True)
        logits = [step.logits]
        for position in range(3, ids.shape[1]):
            step = llama(ids[:, position : position + 1], visual_query=seen, cache=step.cache, use_cache=True)
            logits.append(step.logits)
        assert (llama(ids).logits - whole).abs().max() > 0.1, "the picture must matter here"
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-5, rtol=0)


def test_a_tied_table_is_one_parameter_and_stays_one(tmp_path: Path) -> None:
    tied_with_groups(tmp_path)
    adapter = write_adapter(tmp_path / "a.pth")
    backbone = BackboneConfig(str(tmp_path), str(adapter), "", "", 8)
    for dtype in (torch.float32, torch.bfloat16):
        llama, _ = load_language(backbone, dtype)
        assert llama.lm_head.weight is llama.model.embed_tokens.weight and llama.lm_head.weight.dtype == dtype
        assert "lm_head.weight" not in dict(llama.named_parameters())
        assert {"lm_head.extra", "model.embed_tokens.extra"} <= dict(llama.named_parameters()).keys()
    state = load_file(tmp_path / "model.safetensors")
    table = state["model.embed_tokens.weight"]
    save_file({**state, "lm_head.weight": table.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    language(tmp_path, adapter)  # a copy of the table, as older versions saved it
    save_file({**state, "lm_head.weight": table + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"says tie_word_embeddings.*lm_head\.weight in the files differs from model\.emb"
    ):
        language(tmp_path, adapter)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_file_goes_before_a_stale_index_shards_and_half_precision(tmp_path: Path, file: str) -> None:
    made = network(WORDS)
    made.save_pretrained(tmp_path)
    write_pieces(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if file.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / file)
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    half = {name: value.half() for name, value in state.items()}
    if file.endswith(".safetensors"):
        save_file(half, tmp_path / "model.fp16.safetensors")
        save_file({name: value * 0 for name, value in state.items()}, tmp_path / "model-00001-of-00002.safetensors")
    llama = language(tmp_path, write_adapter(tmp_path / "a.pth"))
    assert torch.equal(llama.model.embed_tokens.weight, state["model.embed_tokens.weight"])


def test_a_tokenizer_that_does_not_fit_its_table_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.pth")
    network(WORDS - 40).save_pretrained(tmp_path / "short")
    write_pieces(tmp_path / "short")
    for load in (lambda: language(tmp_path / "short", adapter), lambda: M2ChatTokenizer(tmp_path / "short")):
        with pytest.raises(UserError, match=r"has 640 words and the network's table 600 rows: 40 words have none"):
            load()
    # Meta's description leaves the number to the tokenizer, and the table is a wider one.
    write_meta(network(WORDS + 1), tmp_path / "meta", vocab_size=-1)
    write_pieces(tmp_path / "meta")
    with pytest.raises(UserError, match=r'641 rows, but its description leaves it .* 640: set "vocab_size": 641'):
        language(tmp_path / "meta", adapter)


def test_special_tokens_without_rows_move_the_added_ones_behind_them(tmp_path: Path) -> None:
    """The folder of a chat model whose tokenizer was given tokens that its table never got."""
    made = network(WORDS)
    made.save_pretrained(tmp_path)
    write_pieces(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra_1|>": WORDS, "<|extra_2|>": WORDS + 1}))
    llama, tokenizer = language(tmp_path, write_adapter(tmp_path / "a.pth")), M2ChatTokenizer(tmp_path)
    assert tokenizer.ic_id == WORDS + 2 and tokenizer.vocab_size == WORDS + 4
    with torch.no_grad():
        logits = llama(torch.tensor([[1, 30, tokenizer.ic_id, tokenizer.img_id]])).logits
        torch.testing.assert_close(logits[:, :2, :WORDS], made(torch.tensor([[1, 30]])).logits)
    assert logits.shape[-1] == WORDS + 4
    assert (logits.softmax(-1)[..., WORDS : WORDS + 2] == 0).all(), "what has no row is never chosen"


@pytest.mark.parametrize("setting", ["attention_bias", "mlp_bias", "quantization_config"])
def test_relatives_that_the_adapter_has_no_place_for_are_refused(setting: str, tmp_path: Path) -> None:
    network(WORDS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {setting: {"bits": 4}}))
    with pytest.raises(UserError, match=rf"config\.json sets {setting}=.*Use a LLaMA without it"):
        language(tmp_path, write_adapter(tmp_path / "a.pth"))


def test_older_descriptions_of_stretched_rotations_mean_the_same(tmp_path: Path) -> None:
    made = network(WORDS, rope_parameters={"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0})
    made.save_pretrained(tmp_path)
    write_pieces(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    older = {"rope_theta": 7000.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "pad_token_id": -1}
    (tmp_path / "config.json").write_text(json.dumps(config | older))
    llama, ids = language(tmp_path, write_adapter(tmp_path / "a.pth")), torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(llama(ids).logits[..., :WORDS], made(ids).logits, atol=5e-5, rtol=0)


def test_a_gguf_file_is_converted_first_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf_file(tmp_path)
    folder = tmp_path / "converted"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    tokenizer = M2ChatTokenizer(folder)
    assert tokenizer.chat_template is not None and "<|im_start|>" in tokenizer.chat_template
    assert not tokenizer.adds_bos
    before = write_fast(tmp_path / "before")
    for text in ("I'm hungry, it's 12345 o'clock!", "<|im_end|> é 猫"):
        assert tokenizer.encode(text) == M2ChatTokenizer(before).encode(text)
    assert main(["weights", "check", str(folder)]) == 0
    capsys.readouterr()
    assert main(["weights", "inspect", str(tmp_path / "small.gguf")]) == 0
    assert "LLaMA in a GGUF file" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is a GGUF file: convert it to a folder once, with `m2chat weights convert"):
        language(tmp_path / "small.gguf", write_adapter(tmp_path / "a.pth"))
    data = (tmp_path / "small.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    assert main(["weights", "convert", str(tmp_path / "cut.gguf"), str(tmp_path / "out")]) == 2
    assert "cannot be read as a GGUF file, it is truncated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_with_more_than_a_plain_llama_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFWriter

    import bases

    made = network(400, kv_heads=2, tie_word_embeddings=True)
    plain = bases._gguf_tensors
    more = [("blk.0.attn_q.bias", torch.ones(made.config.hidden_size))]
    monkeypatch.setattr(bases, "_gguf_tensors", lambda *given: [*plain(*given), *more])
    write_gguf(made, fast_tokenizer(), tmp_path / "biased.gguf")
    monkeypatch.setattr(bases, "_gguf_tensors", plain)
    monkeypatch.setattr(GGUFWriter, "add_tokenizer_pre", lambda self, _: self.add_string("tokenizer.ggml.pre", "new"))
    write_gguf(made, fast_tokenizer(), tmp_path / "cut.gguf")
    for name, message in (("biased", "such as blk.0.attn_q.bias"), ("cut", "by the rules 'new' (tokenizer.ggml.pre)")):
        assert main(["weights", "convert", str(tmp_path / f"{name}.gguf"), str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_gguf_needs_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from m2chat.models.weights.gguf import read_metadata

    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gguf, which is not installed: pip install 'm2chat\[gguf\]'"):
        read_metadata(tmp_path / "a.gguf", "weights")


def test_the_shipped_micro_base_is_as_it_was() -> None:
    tokenizer = M2ChatTokenizer(MICRO / "llama")
    assert (tokenizer.ic_id, tokenizer.img_id, tokenizer.vocab_size) == (640, 641, 642)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.chat_template is None and tokenizer.adds_bos
