"""Samples to look at in TensorBoard."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from m2chat.callbacks.base import EvalLoop, EvaluationCallback
from m2chat.evaluation.grid import comparison, conversation_table
from m2chat.schema import Prediction


class SampleImages(EvaluationCallback):
    """Shows the first predictions: a grid ``context | generated | truth``, and the replies as text.

    Validation samples keep their order, so the same prompts can be followed through training.

    Args:
        count: Number of predictions.
        size: Width and height of a picture in the grid, in pixels.
    """

    def __init__(self, count: int = 8, size: int = 128) -> None:
        self.count = count
        self.size = size
        self._shown: list[Prediction] = []

    def begin(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Forgets the last ones."""
        self._shown = []

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: EvalLoop) -> None:
        """Keeps the first ones."""
        self._shown += predictions[: self.count - len(self._shown)]

    def finish(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Writes them, from the first rank."""
        # The sanity check sees too few samples: its grid would not match the later ones.
        if not self._shown or not trainer.is_global_zero or trainer.sanity_checking:
            return
        picture = comparison(self._shown, self.size)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                step = trainer.global_step
                logger.experiment.add_text(f"{stage}/replies", conversation_table(self._shown), step)
                if picture is not None:
                    tag = f"{stage}/context_generated_truth"
                    logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        self._shown = []
