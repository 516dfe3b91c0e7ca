"""Stage 1 of M³FT (Eq. 6): the M³Adapter learns to speak to the image decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from m2chat.batch import Batch, FrozenFeatures
from m2chat.errors import UserError
from m2chat.training.m2chat_module import M2ChatModule


class AlignModule(M2ChatModule):
    """Trains the M³Adapter, without image branch and gate, on caption pairs."""

    stage = "align"
    init_stage = "align"

    def losses(self, batch: Batch, features: FrozenFeatures | None = None) -> dict[str, Tensor]:
        """The losses of Eq. 6.

        Args:
            batch: Raw samples.
            features: Features of the frozen networks; None takes those of the batch, or computes them.

        Raises:
            UserError: If a sample has a context picture: stage 1 has no use for it and would not look at it.
        """
        if shown := batch.located().shown:
            first = batch.samples[shown[0]].id
            raise UserError(
                f"stage 1 trains on caption pairs, but sample {first!r} has a context picture: leave its source out "
                "of data.train, or set the source's `kinds` to [caption]"
            )
        noise = self.needed_noise(batch)
        output = self.model(batch, noise, use_image=False, with_text=False, features=features)
        loss, parts = self.picture_losses(batch, noise, output)
        return {"loss": loss, **parts}

    def loss_parts(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch and its parts by name; none where a sample has a context picture."""
        return {} if bool(batch.has_context.any()) else self.losses(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of Eq. 6."""
        losses = self.losses(batch)
        self.log_losses(batch, **losses)
        return {"loss": losses["loss"]}
