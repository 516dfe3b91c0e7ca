"""The network behind ``fid_micro`` and ``fid_pocket``: pretrained to name the attributes of a world's pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2chat.errors import UserError
from m2chat.models.weights.files import load_json, read_safetensors


class FeatureNet(nn.Module):
    """Three strided convolutions over pixels and their places, pooled.

    Two further input channels hold each pixel's place: without them pooling would forget where an object is.

    Args:
        heads: Attribute name to number of values; the heads serve pretraining only.
        num_features: Width of the pooled features, D.
        width: Channels of the first layer; a multiple of 8.
        size: Side S of the pictures that it sees, in pixels; others are resized.
    """

    def __init__(self, heads: Mapping[str, int], num_features: int = 64, width: int = 32, size: int = 32) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"heads": dict(heads), "num_features": num_features, "width": width, "size": size}
        self.size = size
        widths = (width, 2 * width, 2 * width)
        layers: list[nn.Module] = []
        channels = 5
        for out in widths:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            channels = out
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, num_features, 1), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(num_features, size) for name, size in heads.items()})

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of 0-255 to (B, 3, S, S) in [-1, 1]."""
        scaled = pixels.float() / 127.5 - 1
        if scaled.shape[-2:] == (self.size, self.size):
            return scaled
        return F.interpolate(scaled, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [-1, 1] to features (B, D)."""
        axis = torch.linspace(-1, 1, self.size, device=pixels.device, dtype=pixels.dtype)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(pixels), -1, -1, -1)
        features: Tensor = self.body(torch.cat([pixels, place], 1)).mean((2, 3))
        return features

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] to logits (B, values) of each attribute."""
        features = self.features(pixels)
        return {name: head(features) for name, head in self.heads.items()}

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (fp16)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        weights = {name: value.detach().half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @staticmethod
    def read_config(folder: Path) -> dict[str, Any]:
        """What `save` wrote into ``config.json``.

        Raises:
            UserError: If the folder holds no such network.
        """
        path = folder / "config.json"
        if not path.is_file():
            remedy = "run `make backbones` (micro) or `make backbones-pocket`"
            raise UserError(f"MicroExtractor folder={str(folder)!r} has no config.json; {remedy}")
        return load_json(path, "MicroExtractor folder")

    @classmethod
    def load(cls, folder: Path) -> FeatureNet:
        """Reads what `save` wrote, in fp32.

        Raises:
            UserError: If a file is missing, damaged, or of another network.
        """
        state = read_safetensors(folder / "model.safetensors", "MicroExtractor folder")
        try:
            network = cls(**cls.read_config(folder))
            network.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"MicroExtractor folder={str(folder)!r} holds another network: {error}") from error
        return network.eval()
