"""LLaMA's weights: Meta's folder or a transformers folder, as one description and one dict of tensors.

Meta's folder is ``params.json``, ``consolidated.00.pth`` and, there or one level up, ``tokenizer.model``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.adapter_file import LINEAR, NORM, PERMUTED, in_halves
from m2chat.models.mapped import reordered
from m2chat.models.weights.files import load_json, read_folder, read_tensors
from m2chat.vocabulary import open_vocabulary

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"
_NOT_OURS = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "auto_map")

_UNSUPPORTED = {
    "attention_bias": "biases of keys and values, for which LLaMA-Adapter's files have no place",
    "mlp_bias": "biases of its own, which LLaMA-Adapter's would replace",
    "quantization_config": "weights that are stored in fewer bits",
}


@dataclass(frozen=True)
class LlamaSource:
    """A plain LLaMA as it is on disk.

    Args:
        settings: Arguments of transformers' `LlamaConfig`.
        state: Tensors by the names of `LlamaForCausalLM`; a tied head is the table itself.
        ignored: Unused names in the files, such as tables that can be computed.
        form: Form of the folder, ``meta`` or ``transformers``, or ``gguf`` of a file.
        folder: Path of the folder or the file.
    """

    settings: dict[str, Any]
    state: dict[str, Tensor]
    ignored: list[str]
    form: Literal["meta", "transformers", "gguf"]
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
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        raise UserError(
            f"{what}={str(path)!r} is a GGUF file: convert it to a folder once, with "
            f"`m2chat weights convert {path} {path.stem}`, and name that"
        )
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
    if lost := [name for name in _UNSUPPORTED if config.get(name)]:
        raise UserError(
            f"{what}: {folder}/config.json sets {lost[0]}={config[lost[0]]!r}: {_UNSUPPORTED[lost[0]]}, which is not "
            "supported. Use a LLaMA without it"
        )
    everything = read_folder(folder, what)
    ignored = [name for name in everything if name.endswith("rotary_emb.inv_freq")]  # older versions saved it
    state = {name: tensor for name, tensor in everything.items() if name not in ignored}
    settings = clean_settings(config)
    if _TABLE in state:  # very old descriptions leave it out
        settings.setdefault("vocab_size", len(state[_TABLE]))
    if settings.get("tie_word_embeddings"):
        _tie(state, f"{what}: {folder}")
    return LlamaSource(settings, state, ignored, "transformers", folder)


def clean_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `LlamaConfig` from a ``config.json``."""
    settings = {key: value for key, value in config.items() if key not in _NOT_OURS}
    if (pad := settings.get("pad_token_id")) is not None and not 0 <= pad < settings.get("vocab_size", 0):
        settings["pad_token_id"] = None  # Vicuna's -1, or a token behind the table
    return settings


def _tie(state: dict[str, Tensor], where: str) -> None:
    """Makes the head the table.

    Raises:
        UserError: If the files have a head of another content.
    """
    table = state.get(_TABLE)
    if table is None:
        return  # reported as missing, with all others
    if (head := state.get(_HEAD)) is not None and not torch.equal(head, table):
        raise UserError(
            f"{where}: config.json says tie_word_embeddings, so the output table is the input table, but {_HEAD} in "
            f"the files differs from {_TABLE}. If the head was trained apart, set tie_word_embeddings to false; if "
            "not, remove it from the files"
        )
    state[_HEAD] = table


def _open_meta(folder: Path, what: str) -> LlamaSource:
    params = load_json(folder / "params.json", what)
    parts = sorted(folder.glob("consolidated.*.pth"))
    if len(parts) > 1:
        raise UserError(
            f"{what}: {folder} is split over {len(parts)} model-parallel files (dim {params.get('dim')}), as LLaMA 13B "
            "and larger are; LLaMA-Adapter's files exist for 7B: use the 7B folder, with one consolidated.00.pth"
        )
    official = read_tensors(folder / "consolidated.00.pth", what)
    needed = ("tok_embeddings.weight", "norm.weight", "layers.0.feed_forward.w1.weight")
    if lost := [name for name in needed if name not in official]:
        raise UserError(f"{what}: {folder / 'consolidated.00.pth'} lacks {lost[0]!r}: it is not Meta's LLaMA")
    try:
        heads, layers, eps = int(params["n_heads"]), int(params["n_layers"]), float(params["norm_eps"])
    except KeyError as error:
        raise UserError(f"{what}: {folder / 'params.json'} lacks {error}: copy Meta's file") from None
    state, ignored = from_meta(official, heads, int(params.get("n_kv_heads") or heads))
    vocab, width = official["tok_embeddings.weight"].shape
    tied = _HEAD not in state
    if tied:
        state[_HEAD] = state[_TABLE]
    settings = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": official["layers.0.feed_forward.w1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(params.get("n_kv_heads") or heads),
        "rms_norm_eps": eps,
        **_rotation(params, lambda: tied or torch.equal(state[_HEAD], state[_TABLE])),
        "attention_bias": False,
        "tie_word_embeddings": tied,
        **_ends(folder),
    }
    return LlamaSource(settings, state, ignored, "meta", folder)


def _rotation(params: Mapping[str, Any], is_tied: Callable[[], bool]) -> dict[str, Any]:
    """The rotation of Meta's generations, and the length for which each was trained.

    Llama 3.1 and later stretch it (``use_scaled_rope``): by 8, and by 32 in the 1B and 3B of 3.2, whose tables are
    equal; their ``params.json`` does not say by how much.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(params.get("rope_theta", 10000.0))}
    length = 2048 if "rope_theta" not in params else 8192
    if params.get("use_scaled_rope"):
        length = 131072
        rope |= {
            "rope_type": "llama3",
            "factor": float(params.get("rope_scaling_factor") or (32.0 if is_tied() else 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": float(params.get("rope_high_freq_factor") or 4.0),
            "original_max_position_embeddings": 8192,
        }
    return {"max_position_embeddings": length, "rope_parameters": rope}


def _ends(folder: Path) -> dict[str, int]:
    """Numbers of the start and the end token, which Meta's folder leaves to its tokenizer."""
    roles = vocabulary.roles if (vocabulary := open_vocabulary(folder)) else {}
    return {"bos_token_id": roles.get("bos", 1), "eos_token_id": roles.get("eos", 2)}


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
            ours = f"model.layers.{layer}.{LINEAR[stem]}.{kind}"
            state[ours] = reordered(in_halves(tensor, rows), tensor.shape) if stem in PERMUTED else tensor
        elif stem in NORM:
            state[f"model.layers.{layer}.{NORM[stem]}.{kind}"] = tensor
        else:
            state[name] = tensor
    return state, ignored
