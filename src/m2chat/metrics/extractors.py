"""Feature extractors for the Fréchet distance: Inception for real pictures, a small network for the micro world."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.metrics.feature_net import FeatureNet
from m2chat.models.weights.files import read_tensors
from m2chat.schema import Picture


class FeatureExtractor(Protocol):
    """What the Fréchet distance needs of an extractor."""

    @property
    def metric(self) -> str:
        """Name of the distance in this feature space: ``fid`` is the published one only."""
        ...

    @property
    def num_features(self) -> int:
        """Width D of a feature vector."""
        ...

    @property
    def name(self) -> str:
        """Names the weights."""
        ...

    def to(self, device: torch.device) -> None:
        """Chooses where to compute."""
        ...

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        ...

    def extract(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Features of pictures of any sizes, (n, D)."""
        ...


def _by_size(pictures: Sequence[Picture]) -> list[list[int]]:
    """Indices of pictures of equal size: those can share a batch."""
    groups = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[picture.shape].append(index)
    return list(groups.values())


class _NetworkExtractor(ABC):
    """An extractor around a network that is loaded at its first use."""

    metric: str

    def __init__(self, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self._device = torch.device("cpu")
        self._network: Any = None

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Width D of a feature vector."""

    @abstractmethod
    def _load(self) -> torch.nn.Module:
        """The network with its weights."""

    @abstractmethod
    def _forward(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Features (n, D) of pictures of one size, (n, 3, H, W) uint8."""

    def to(self, device: torch.device) -> None:
        """Chooses where to compute."""
        self._device = device
        if self._network is not None:
            self._network.to(device)

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        self._network = None

    @torch.no_grad()
    def extract(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Features of pictures of any sizes, (n, D)."""
        if self._network is None:
            self._network = self._load().float().to(self._device).eval().requires_grad_(False)
        rows = np.zeros((len(pictures), self.num_features), np.float32)
        with torch.autocast(self._device.type, enabled=False):
            for group in _by_size(pictures):
                for start in range(0, len(group), self.batch_size):
                    chosen = group[start : start + self.batch_size]
                    pixels = torch.from_numpy(np.stack([pictures[i] for i in chosen])).permute(0, 3, 1, 2)
                    rows[chosen] = self._forward(self._network, pixels.to(self._device)).float().cpu().numpy()
        return rows


class MicroExtractor(_NetworkExtractor):
    """The network of the micro world; its distance is called ``fid_micro`` and compares with no other.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``, as `FeatureNet.save` writes them.
        batch_size: Pictures in one forward pass.
    """

    metric = "fid_micro"

    def __init__(self, folder: str = "data/micro/fid", batch_size: int = 256) -> None:
        super().__init__(folder, batch_size)
        self.folder = Path(folder)

    @property
    def num_features(self) -> int:
        """Width D of a feature vector."""
        return int(FeatureNet.read_config(self.folder)["num_features"])

    def _load(self) -> torch.nn.Module:
        return FeatureNet.load(self.folder)

    def _forward(self, network: FeatureNet, pixels: torch.Tensor) -> torch.Tensor:
        return network.features(network.prepare(pixels))


class PocketExtractor(MicroExtractor):
    """The same for the pocket system's network, which sees 64 x 64 pixels; its distance is called ``fid_pocket``."""

    metric = "fid_pocket"

    def __init__(self, folder: str = "data/pocket/fid", batch_size: int = 128) -> None:
        super().__init__(folder, batch_size)


class InceptionExtractor(_NetworkExtractor):
    """Inception-v3 as published for FID: 2,048 features of its last pooling.

    Args:
        weights_path: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.
        short_side: Pictures are first brought to this short side, bilinear and uncropped; None leaves them. The
            network then squeezes each to 299 x 299 as TensorFlow 1 did, without antialiasing.
        crop: Whether the middle square is cut out then, as COCO's protocol does.
        batch_size: Pictures in one forward pass.
    """

    metric = "fid"

    def __init__(
        self, weights_path: str, short_side: int | None = 256, crop: bool = False, batch_size: int = 32
    ) -> None:
        cut = ", middle square" if crop else ""
        super().__init__(f"{Path(weights_path).name}, short side {short_side}{cut}", batch_size)
        self.crop = crop
        self.weights_path = weights_path
        self.short_side = short_side

    @property
    def num_features(self) -> int:
        """Width D of a feature vector."""
        return 2048

    def _load(self) -> torch.nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if not Path(self.weights_path).is_file():
            raise UserError(
                f"InceptionExtractor weights_path={self.weights_path!r} is no file; get it from "
                "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
            )
        # torch-fidelity would unpickle whatever is in the file: it gets what was read of it instead.
        weights = io.BytesIO()
        torch.save(read_tensors(Path(self.weights_path), "InceptionExtractor weights_path"), weights)
        weights.seek(0)
        try:
            network: torch.nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"InceptionExtractor weights_path={self.weights_path!r} is another network: {reason}"
            ) from error
        return network

    def extract(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Features of pictures of any sizes, (n, 2048)."""
        return super().extract([self._resized(picture) for picture in pictures])

    def _resized(self, picture: Picture) -> Picture:
        from PIL import Image

        height, width = picture.shape[:2]
        if self.short_side is not None and min(height, width) != self.short_side:
            scale = self.short_side / min(height, width)
            size = (round(width * scale), round(height * scale))
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        if not self.crop:
            return picture
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return picture[top : top + side, left : left + side]

    def _forward(self, network: Any, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network(pixels)[0]
        return features
