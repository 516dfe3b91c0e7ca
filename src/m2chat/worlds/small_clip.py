"""The small open_clip models that each generated world pretrains: configuration, pixels, folder, retrieval.

Shapes: B pictures, S pixels a side, D width of the joint space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LOG_SCALE = 4.6052
"""CLIP's limit of the logarithmic scale of its logits."""


def write_clip_config(
    folder: Path, width: int, vision: Mapping[str, int], context_length: int, layers: int = 3, heads: int = 4
) -> None:
    """Writes ``open_clip_config.json`` beside a tokenizer.

    Args:
        folder: Folder with the ``tokenizer.json``.
        width: Width D of the joint space and of the text transformer.
        vision: The vision transformer: ``image_size``, ``layers``, ``width``, ``head_width``, ``patch_size``.
        context_length: Tokens of a text with its start and end.
        layers: Layers of the text transformer.
        heads: Attention heads of the text transformer.
    """
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = {
        "model_cfg": {
            "embed_dim": width,
            "quick_gelu": True,
            "vision_cfg": dict(vision),
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": vocabulary,
                "width": width,
                "heads": heads,
                "layers": layers,
                "hf_tokenizer_name": ".",
                "tokenizer_kwargs": {"clean": "whitespace"},
            },
        },
        "preprocess_cfg": {"mean": _MEAN, "std": _STD, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def open_clip_folder(folder: Path, load_weights: bool = True) -> tuple[Any, Any]:
    """The model of a folder in fp32, and its tokenizer.

    Args:
        folder: An open_clip folder.
        load_weights: Whether its weights are read; else it begins at random.
    """
    import open_clip

    model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=load_weights)
    return model.float(), open_clip.get_tokenizer(f"local-dir:{folder}")


def save_clip(model: Any, folder: Path) -> None:
    """Saves a copy of the weights in fp16."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


def normalise(pixels: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] to CLIP's range."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (_MEAN, _STD))
    return ((pixels + 1) / 2 - mean) / std
