"""LLaMA's weights: Meta's folder or a transformers folder, as one description and one dict of tensors.

Meta's folder is ``params.json``, ``consolidated.00.pth`` and, there or one level up, ``tokenizer.model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.adapter_file import LINEAR, NORM, PERMUTED, permute
from m2chat.models.weights.files import load_json, read_folder, read_tensors

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NOT_OURS = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map")


@dataclass(frozen=True)
class LlamaSource:
    """A plain LLaMA as it is on disk.

    Args:
        settings: Arguments of transformers' `LlamaConfig`.
        state: Tensors by the names of `LlamaForCausalLM`.
        ignored: Unused names in the files, such as tables that can be computed.
        form: Form of the folder: ``meta`` or ``transformers``.
        folder: Path of the folder.
    """

    settings: dict[str, Any]
    state: dict[str, Tensor]
    ignored: list[str]
    form: Literal["meta", "transformers"]
    folder: Path


def llama_folder(path: Path) -> Path:
    """The folder that holds the weights: the given one, or the ``7B`` inside Meta's root."""
    return path / "7B" if (path / "7B" / "params.json").is_file() else path


def open_llama(path: Path, what: str) -> LlamaSource:
    """Opens a LLaMA of either form; its tensors stay on disk until they are used.

    Args:
        path: Meta's folder (``7B``, or the root that has it), or a transformers folder.
        what: The setting that names it, for messages.

    Raises:
        UserError: If something is missing, broken, or split over several model-parallel files as 13B and larger are.
    """
    folder = llama_folder(path)
    if not folder.is_dir():
        actual = "it is a file" if folder.is_file() else "it does not exist"
        raise UserError(
            f"{what}={str(path)!r}: expected is a folder, but {actual}. Give Meta's folder (params.json, "
            "consolidated.00.pth, tokenizer.model) or a transformers folder (config.json, *.safetensors or *.bin)"
        )
    return _open_meta(folder, what) if (folder / "params.json").is_file() else _open_transformers(folder, what)


def _open_transformers(folder: Path, what: str) -> LlamaSource:
    config = load_json(folder / "config.json", what)
    kind = config.get("model_type")
    if kind not in (None, "llama"):
        raise UserError(f"{what}: {folder}/config.json describes a {kind!r} network; expected is 'llama'")
    everything = read_folder(folder, what)
    ignored = [name for name in everything if name.endswith("rotary_emb.inv_freq")]  # older versions saved it
    state = {name: tensor for name, tensor in everything.items() if name not in ignored}
    settings = {key: value for key, value in config.items() if key not in _NOT_OURS}
    return LlamaSource(settings, state, ignored, "transformers", folder)


def _open_meta(folder: Path, what: str) -> LlamaSource:
    params = load_json(folder / "params.json", what)
    parts = sorted(folder.glob("consolidated.*.pth"))
    if len(parts) > 1:
        raise UserError(
            f"{what}: {folder} is split over {len(parts)} model-parallel files (dim {params.get('dim')}), as LLaMA 13B "
            "and larger are; LLaMA-Adapter's files exist for 7B: use the 7B folder, with one consolidated.00.pth"
        )
    official = read_tensors(folder / "consolidated.00.pth", what)
    if lost := [name for name in (*_TOP, "layers.0.feed_forward.w1.weight") if name not in official]:
        raise UserError(f"{what}: {folder / 'consolidated.00.pth'} lacks {lost[0]!r}: it is not Meta's LLaMA")
    try:
        heads, layers, eps = int(params["n_heads"]), int(params["n_layers"]), float(params["norm_eps"])
    except KeyError as error:
        raise UserError(f"{what}: {folder / 'params.json'} lacks {error}: copy Meta's file") from None
    state, ignored = from_meta(official, heads, int(params.get("n_kv_heads") or heads))
    vocab, width = official["tok_embeddings.weight"].shape
    settings = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": official["layers.0.feed_forward.w1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(params.get("n_kv_heads") or heads),
        "rms_norm_eps": eps,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(params.get("rope_theta", 10000.0))},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaSource(settings, state, ignored, "meta", folder)


def from_meta(official: Mapping[str, Tensor], heads: int, kv_heads: int) -> tuple[dict[str, Tensor], list[str]]:
    """Renames Meta's tensors to those of `LlamaForCausalLM`, and re-orders the rows of q and k.

    Args:
        official: Tensors of ``consolidated.00.pth``.
        heads: Attention heads.
        kv_heads: Heads of keys and values.

    Returns:
        The tensors, and names that were left out because they can be computed. A name that the format does not
        know stays as it is, for the caller to complain about.
    """
    state: dict[str, Tensor] = {}
    ignored: list[str] = []
    for name, tensor in official.items():
        _, layer, rest = (name.split(".", 2) if name.startswith("layers.") else ("", "", name))[:3]
        stem, _, kind = rest.rpartition(".")
        if name.endswith("rope.freqs"):
            ignored.append(name)
        elif name in _TOP:
            state[_TOP[name]] = tensor
        elif stem in LINEAR:
            rows = heads if stem == "attention.wq" else kv_heads
            state[f"model.layers.{layer}.{LINEAR[stem]}.{kind}"] = permute(tensor, rows) if stem in PERMUTED else tensor
        elif stem in NORM:
            state[f"model.layers.{layer}.{NORM[stem]}.{kind}"] = tensor
        else:
            state[name] = tensor
    return state, ignored
