"""Miniature language models of every form that people have: random networks, written as their publishers write them."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from m2chat.models.adapter_file import LINEAR, NORM, PERMUTED, permute

MICRO = Path(__file__).parents[1] / "data" / "micro"
WORDS = 640
"""Of the micro sentencepiece model."""
PROMPTS = 3
TEXTS = ["a red circle on a blue background", "I'm hungry, it's 12345 o'clock!", "two  spaces\n\n### Response:"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def network(rows: int, *, heads: int = 4, kv_heads: int = 4, **settings: Any) -> LlamaForCausalLM:
    """Transformers' own, in evaluation mode, with every parameter random."""
    torch.manual_seed(rows + kv_heads)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "rms_norm_eps": 1e-5}
    config = LlamaConfig(
        vocab_size=rows, num_attention_heads=heads, num_key_value_heads=kv_heads, **{**sizes, **settings}
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if "norm" in name else 0.0))
    return made


def write_meta(made: LlamaForCausalLM, folder: Path, **params: Any) -> Path:
    """As Meta publishes it: other names, and the rows of q and k in pairs."""
    folder.mkdir(parents=True)
    config, state = made.config, made.state_dict()
    top = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    official = {f"{old}.weight": state[f"{new}.weight"] for old, new in top.items()}
    for layer in range(config.num_hidden_layers):
        for old, new in {**LINEAR, **NORM}.items():
            value = state[f"model.layers.{layer}.{new}.weight"]
            if old in PERMUTED:
                heads = config.num_attention_heads if old == "attention.wq" else config.num_key_value_heads
                value = permute(value, heads, inverse=True)
            official[f"layers.{layer}.{old}.weight"] = value
    torch.save({name: value.clone() for name, value in official.items()}, folder / "consolidated.00.pth")
    known = {"dim": 64, "n_layers": 3, "n_heads": config.num_attention_heads, "norm_eps": config.rms_norm_eps}
    (folder / "params.json").write_text(json.dumps(known | params))
    return folder


def write_gguf(made: LlamaForCausalLM, tokenizer: Tokenizer, path: Path, **numbers: int) -> Path:
    """As llama.cpp's converter writes it, with its order of the rows of q and k, and a byte-level tokenizer."""
    from gguf import GGUFWriter

    config, state = made.config, made.state_dict()
    writer = GGUFWriter(path, "llama")
    writer.add_name("miniature")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    data = json.loads(tokenizer.to_str())
    special = {token["content"] for token in data["added_tokens"]}
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]])
    writer.add_bos_token_id(words.index("<|im_start|>"))
    writer.add_eos_token_id(words.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = LlamaConfig(**{**config.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})
        rates = LlamaForCausalLM(plain).model.rotary_emb.inv_freq
        writer.add_tensor("rope_freqs.weight", (rates / made.model.rotary_emb.inv_freq).numpy())
    for name, value in _gguf_tensors(config, state):
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(config: Any, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    if not config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for old, new in names.items():
            value = state[f"model.layers.{layer}.{old}.weight"]
            yield f"blk.{layer}.{new}.weight", permute(value, heads[old], inverse=True) if old in heads else value


def fast_tokenizer(words: int = 310) -> Tokenizer:
    """Byte-level BPE with the special tokens of ChatML, as SmolLM2 has."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, *(f"{word} {word}" for word in " ".join(TEXTS).split())] * 3, trainer)
    return made


def write_fast(folder: Path, tokenizer: Tokenizer | None = None, **description: Any) -> Path:
    """``tokenizer.json`` and what stands beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or fast_tokenizer()).save(str(folder / "tokenizer.json"))
    own = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(own | description))
    return folder


def write_unigram(folder: Path) -> Path:
    """A fast tokenizer whose pieces include its special tokens with the best of scores: text would become them."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁red", -3.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return write_fast(folder, made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=None)


def write_ranks(folder: Path) -> Path:
    """Llama 3's ``tokenizer.model``: a line for each byte sequence, its rank behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = [b" a", b"in", b" re", b"th", b" the", b"12", b"123", b" red", b"<|", b"|>", b"img", b"\n\n", b"is"]
    ranks = [bytes([byte]) for byte in range(256)] + merged
    lines = [base64.b64encode(word) + f" {rank}".encode() for rank, word in enumerate(ranks)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder


RANKED_WORDS = 256 + 13 + 256


def write_pieces(folder: Path, symbols: tuple[str, ...] = ()) -> Path:
    """The micro sentencepiece model, with user-defined symbols behind it if wanted, as chat models have them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not symbols:
        shutil.copy(MICRO / "llama" / "tokenizer.model", folder)
        return folder
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((MICRO / "llama" / "tokenizer.model").read_bytes())
    for symbol in symbols:
        model.pieces.add(piece=symbol, score=0.0, type=model.SentencePiece.USER_DEFINED)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return folder


def write_adapter(path: Path, width: int = 64, heads: int = 4, layers: int = 3, gate: float = 0.0) -> Path:
    """A LLaMA-Adapter file for a base of these sizes, which leaves its norms and biases alone."""
    clip, official = 48, {}
    shapes: dict[str, tuple[int, ...]] = {
        "adapter_query.weight": ((layers - 1) * PROMPTS, width), "visual_query.weight": (PROMPTS, clip),
        "clip_proj.weight": (clip, clip), "clip_proj.bias": (clip,), "clip_proj_norm.weight": (clip,),
        "clip_proj_norm.bias": (clip,), "visual_proj.weight": (width, clip), "visual_proj.bias": (width,),
        "visual_proj_norm.weight": (width,), "visual_proj_norm.bias": (width,),
    }  # fmt: skip
    for part, shape in (("attn.qkv", (3 * clip, clip)), ("attn.proj", (clip, clip)), ("mlp.fc1", (4 * clip, clip)),
                        ("mlp.fc2", (clip, 4 * clip)), ("norm1", (clip,)), ("norm2", (clip,))):  # fmt: skip
        shapes |= {f"visual_blocks.0.{part}.weight": shape, f"visual_blocks.0.{part}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(5)
    official = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    for layer in range(layers):
        official[f"llama.layers.{layer}.attention.gate"] = torch.full((1, heads, 1, 1), gate)
    torch.save({"model": official, "config": {"visual_heads": 1}}, path)
    return path


def large_llama(folder: Path, hidden_size: int, layers: int) -> Path:
    """The micro LLaMA's folder with a larger network in half precision, whose file is one hole: it fills no disk."""
    shutil.copytree(MICRO / "llama", folder, ignore=shutil.ignore_patterns("*.sha256"))
    config = json.loads((folder / "config.json").read_text()) | {
        "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": hidden_size // 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    settings = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "dtype")}
    with torch.device("meta"):
        state = LlamaForCausalLM(LlamaConfig(**settings)).state_dict()
    write_sparse(folder / "model.safetensors", {name: tuple(value.shape) for name, value in state.items()})
    return folder


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in fp16, which take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def script(path: str) -> Any:
    """The module of a script of the project."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, MICRO.parents[1] / path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
