"""Encoders that put texts and pictures into one space: what CLIP score and InterRel are measured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.integrity import verify, verify_folder
from m2chat.models.weights.files import require_no_code
from m2chat.models.weights.script import PICKLE_ERRORS, reason_of
from m2chat.schema import Picture


class TextImageEncoder(Protocol):
    """What a cross-modal metric needs of an encoder."""

    @property
    def name(self) -> str:
        """Names the weights; two encoders of one name give the same embeddings."""
        ...

    def to(self, device: torch.device) -> None:
        """Chooses where to compute."""
        ...

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        ...

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to unit vectors, (n, D)."""
        ...

    def encode_image(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Pictures to unit vectors, (n, D)."""
        ...


class OpenClipEncoder:
    """An open_clip model in fp32, loaded at its first use.

    Args:
        model: A folder in open_clip's layout (``open_clip_config.json``, weights, tokenizer), or the name of an
            architecture, such as ``ViT-L-14-quickgelu``.
        pretrained: With a name: the tag (``openai``) or a file of its weights.
        batch_size: Texts or pictures in one forward pass.
    """

    def __init__(
        self, model: str = "data/micro/metric_clip", pretrained: str | None = None, batch_size: int = 64
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.batch_size = batch_size
        self._device = torch.device("cpu")
        self._parts: tuple[torch.nn.Module, Callable[..., Any], Callable[..., Any]] | None = None

    @property
    def name(self) -> str:
        """``model`` or ``model/pretrained``."""
        return f"{self.model}/{self.pretrained}" if self.pretrained else self.model

    def to(self, device: torch.device) -> None:
        """Chooses where to compute."""
        self._device = device
        if self._parts is not None:
            self._parts[0].to(device)

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        self._parts = None

    def _load(self) -> tuple[torch.nn.Module, Callable[..., Any], Callable[..., Any]]:
        """Network, picture transform and tokenizer.

        Raises:
            UserError: If there is neither such a folder nor such an architecture, no weights are named, they are
                damaged or hold more than tensors, or they were trained with another activation.
        """
        if self._parts is not None:
            return self._parts
        import open_clip

        if (Path(self.model) / "open_clip_config.json").is_file():
            source, pretrained = f"local-dir:{self.model}", None
            verify_folder(Path(self.model))
            require_no_code(Path(self.model), "encoder model")
        elif self.model not in open_clip.list_models():
            raise UserError(
                f"encoder model={self.model!r} is neither a folder with an open_clip_config.json nor an architecture "
                "that open_clip knows; `make backbones` builds data/micro/metric_clip, and open_clip.list_models() "
                "lists names"
            )
        elif self.pretrained is None:
            raise UserError(
                f"encoder model={self.model!r} needs pretrained=..., else its weights are random; "
                f"choose a file or one of {open_clip.list_pretrained_tags_by_model(self.model)}"
            )
        else:
            source, pretrained = self.model, self.pretrained
            # open_clip only warns of this, and then computes with an activation that the weights never saw.
            weights = open_clip.get_pretrained_cfg(self.model, pretrained) or {}
            if weights.get("quick_gelu") and not open_clip.get_model_config(self.model).get("quick_gelu"):
                raise UserError(
                    f"encoder model={self.model!r}: the weights pretrained={pretrained!r} were trained with QuickGELU; "
                    f"use model='{self.model}-quickgelu'"
                )
        try:
            if pretrained and Path(pretrained).is_file():
                verify(Path(pretrained))
            network, _, transform = open_clip.create_model_and_transforms(source, pretrained, precision="fp32")
        except PICKLE_ERRORS as error:  # open_clip reads weights and nothing else, and so refuses hidden code
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"encoder model={self.model!r}, pretrained={self.pretrained!r} could not be loaded: "
                f"{reason_of(error)}. Without a network, give the weights as a file: pretrained=/path/to/weights"
            ) from error
        network = network.float().to(self._device).eval().requires_grad_(False)
        self._parts = (network, transform, open_clip.get_tokenizer(source))
        return self._parts

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to unit vectors, (n, D); a text that is too long is cut, and its end token kept."""
        network, _, tokenize = self._load()
        return self._encode(network.encode_text, lambda part: tokenize(list(part)), texts)

    def encode_image(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Pictures to unit vectors, (n, D), through open_clip's own resize, crop and normalisation."""
        from PIL import Image

        network, transform, _ = self._load()

        def prepare(part: Sequence[Picture]) -> torch.Tensor:
            return torch.stack([transform(Image.fromarray(picture)) for picture in part])

        return self._encode(network.encode_image, prepare, pictures)

    @torch.no_grad()
    def _encode(
        self, forward: Any, prepare: Callable[[Any], torch.Tensor], items: Sequence[Any]
    ) -> NDArray[np.float32]:
        rows = []
        # Half precision around the caller moves a score by several tenths of a point.
        with torch.autocast(self._device.type, enabled=False):
            for start in range(0, len(items), self.batch_size):
                inputs = prepare(items[start : start + self.batch_size]).to(self._device)
                rows.append(torch.nn.functional.normalize(forward(inputs).float(), dim=-1).cpu())
        return torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)
