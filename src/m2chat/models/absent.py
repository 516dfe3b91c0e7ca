"""Networks that a run does without, because their outputs are kept in a feature cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn


@dataclass(frozen=True)
class Kept:
    """What a feature cache keeps, as far as the networks' places must be filled.

    Args:
        width: D, width of the language model.
        clip_width: W, width of the vision encoder's tokens.
        text: Whether the alignment targets are kept; if not, the text encoders compute them in every step.
        reading: Whether the language model's states are kept, as for stage 1; if not, it is loaded, and so is the
            encoder of the visual query.
        looking: Whether CLIP is needed beside the cache, as for the validation of stage 2.
    """

    width: int
    clip_width: int
    text: bool
    reading: bool = True
    looking: bool = False

    @property
    def of_the_decoder(self) -> frozenset[str]:
        """Parts of the image decoder that are not needed."""
        return frozenset({VAE_ENCODER, *(("text_encoder", "text_encoder_2") if self.text else ())})


VAE_ENCODER = "vae.encoder"
"""Name, among the parts of an image decoder, of the half of the VAE that only training needs."""


class Absent(nn.Module):
    """Stands in the place of a network that was not loaded: it has the network's sizes, and no parameters.

    Args:
        name: Name of the network in messages.
        sizes: Attributes that others ask the network for, such as ``config``.
    """

    def __init__(self, name: str, **sizes: Any) -> None:
        super().__init__()
        self.name = name
        for attribute, value in sizes.items():
            setattr(self, attribute, value)

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"the {self.name} was not loaded, since the feature cache has its outputs")

    def extra_repr(self) -> str:
        """Name of the network."""
        return self.name
