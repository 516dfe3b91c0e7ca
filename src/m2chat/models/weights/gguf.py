"""LLaMA in a GGUF file, as llama.cpp has it: read by transformers, whatever it is quantised to.

Nothing computes on a GGUF file here: it is converted once to a transformers folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from m2chat.errors import UserError
from m2chat.models.weights.llama import LlamaSource, clean_settings

MAGIC = b"GGUF"
_SPLITS = ("gpt-2", "smollm")
"""Rules of byte-level tokenizers beside those of transformers' reader: GPT-2's, its default, and SmolLM's."""
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Llama 3.1's numbers (transformers' documentation of `rope_type="llama3"`)."""
_TENSORS = re.compile(
    r"(token_embd|output|output_norm|rope_freqs)\.weight"
    r"|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down))\.weight"
)
"""Tensors of a plain LLaMA; transformers' reader drops others without a word."""


def is_gguf(path: Path) -> bool:
    """Whether a file is in the GGUF format."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_metadata(path: Path, what: str) -> tuple[dict[str, Any], Any]:
    """The strings and numbers of a GGUF file, and its reader with the tensors.

    Raises:
        UserError: If the reader is not installed, the file is damaged, or of another architecture.
    """
    try:
        import accelerate  # noqa: F401  # transformers' reader needs both
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise UserError(
            f"GGUF files are read with {error.name}, which is not installed: pip install 'm2chat[gguf]'"
        ) from (error)
    with _damaged(path, what):
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{what}: {path} holds a {architecture!r} network; supported is 'llama'")
    if any(tensor.name.endswith("_exps.weight") for tensor in reader.tensors):
        raise UserError(f"{what}: {path} holds a mixture of experts; supported is a plain LLaMA")
    if strange := [tensor.name for tensor in reader.tensors if not _TENSORS.fullmatch(tensor.name)]:
        raise UserError(
            f"{what}: {path} holds {len(strange)} tensors that a plain LLaMA has not, such as {strange[0]}: it would "
            "compute something else without them. Supported is a LLaMA without biases in its attention and MLP"
        )
    return metadata, reader


def open_gguf(path: Path, what: str, dtype: torch.dtype = torch.float32) -> LlamaSource:
    """Reads a LLaMA, its weights dequantised.

    Args:
        path: The file.
        what: The setting that names it, for messages.
        dtype: Precision of the tensors; fp32 holds what every quantisation means exactly.

    Raises:
        UserError: If it is damaged, not LLaMA, or rotates positions in a way that is not known here.
    """
    from transformers import LlamaForCausalLM

    metadata, reader = read_metadata(path, what)
    with _damaged(path, what), _silent():
        network = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    config = network.config.to_dict()
    for name in ("quantization_config", "unk_token_id"):
        config.pop(name, None)
    config |= {f"{role}_token_id": metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    config["rope_parameters"] = _rotation(config["rope_parameters"], metadata, reader, f"{what}: {path}")
    return LlamaSource(clean_settings(config), dict(network.state_dict()), [], "gguf", path)


def save_tokenizer(path: Path, folder: Path, what: str) -> None:
    """Writes the tokenizer of a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``, with its chat template.

    Raises:
        UserError: If the file has none that transformers can read.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    metadata, _ = read_metadata(path, what)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{what}: {path} has a tokenizer of kind {kind!r}; known are 'llama' and 'gpt2'")
    split = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and split not in (*_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise UserError(
            f"{what}: {path} cuts text into words by the rules {split!r} (tokenizer.ggml.pre), which are not known "
            "here, so its tokens would be others than in training: put the model's tokenizer.json beside its weights "
            "and use the transformers folder instead of the GGUF file"
        )
    with _damaged(path, what), _silent():
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    if split == "smollm":  # transformers' reader does not know that digits stand alone
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    words = metadata["tokenizer.ggml.tokens"]
    description: dict[str, Any] = {}
    for role, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (number := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            description[f"{role}_token"] = words[number]
    description["add_bos_token"] = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    if template := metadata.get("tokenizer.chat_template"):
        description["chat_template"] = template
    description["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _rotation(rope: dict[str, Any], metadata: dict[str, Any], reader: Any, where: str) -> dict[str, Any]:
    """The rotation with its stretching, which transformers' reader leaves out: a factor, or a table of factors."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    if kind == "linear":
        return {**rope, "rope_type": "linear", "factor": float(metadata["llama.rope.scaling.factor"])}
    if kind != "none":
        raise UserError(
            f"{where} stretches the rotation of positions by {kind!r}; known are 'linear' and Llama 3's table"
        )
    table = next((tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if table is None:
        return rope
    factors = torch.tensor(table.data.copy()).float().flatten()
    stretched = {**rope, "rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3_ROPE}
    if not torch.allclose(factors, _llama3_factors(stretched, len(factors)), rtol=1e-3):
        raise UserError(
            f"{where} stretches the rotation of positions by a table (rope_freqs.weight) that is not Llama 3's"
        )
    return stretched


def _llama3_factors(rope: dict[str, Any], count: int) -> torch.Tensor:
    """By how much each frequency is divided, (count,): long waves by the factor, short ones not at all."""
    waves: torch.Tensor = 2 * math.pi * rope["rope_theta"] ** (torch.arange(count, dtype=torch.double) / count)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((rope["original_max_position_embeddings"] / waves - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


@contextmanager
def _damaged(path: Path, what: str) -> Iterator[None]:
    """Reports what the readers raise when a file is cut off or damaged.

    Raises:
        UserError: With the file and the reason.
    """
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, OSError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}: {path} ({path.stat().st_size:,} bytes) cannot be read as a GGUF file, it is truncated, damaged "
            f"or of another kind: {reason}. Copy or download it again"
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and notes of transformers' reader."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
