"""How far training has come within an epoch: the batches whose optimiser step is done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from m2chat.data.datamodule import M2ChatDataModule
    from m2chat.data.stream import ShardStream

log = logging.getLogger(__name__)

VERSION = 1
"""Of the saved place. Former versions wrote none, and might have lost count."""


class FinishedBatches:
    """Counts the batches of an epoch that a checkpoint holds in full: those whose optimiser step is done.

    A batch is finished once the trainer has taken a step after the batch was handed out. That is all: no matter when
    Lightning restores its counters (it does so after the data may have been opened), how many batches a step
    accumulates, whether the last step of an epoch has fewer, whether a step was skipped for a loss that is not finite,
    or how many batches the workers have read ahead.
    """

    def __init__(self) -> None:
        self._handed = self._finished = self._start = self._step = 0

    def start(self, batches: int) -> None:
        """Begins an iteration.

        Args:
            batches: Batches of the epoch that were finished before.
        """
        self._start = self._handed = self._finished = batches

    def hand_out(self, step: int) -> None:
        """Counts a batch that is handed out.

        Args:
            step: Optimiser steps that the trainer has taken.
        """
        self.finished(step)
        self._handed += 1

    def finished(self, step: int) -> int:
        """The number of finished batches of the epoch.

        Args:
            step: Optimiser steps that the trainer has taken.
        """
        if step != self._step:
            self._step, self._finished = step, self._handed
        return self._finished

    @property
    def any_handed_out(self) -> bool:
        """Whether the iteration has given any batch."""
        return self._handed > self._start


class KeepsCount(Callback):
    """Makes Lightning count as the data module does, which adds this callback to its trainer.

    Lightning counts batches of an unfinished accumulation window as done, although no checkpoint holds their gradients.
    Its restored counters do not fit each other after a crash and where `max_steps` ended a run within an epoch. And it
    asks for the length of an epoch only once.

    Args:
        data: Whose count is the right one.
    """

    def __init__(self, data: M2ChatDataModule) -> None:
        self._data = data

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the fit loop's counters anew: as Lightning has them at the end of a batch, or between two epochs.

        A validation that was interrupted is left out: Lightning would take the first replies again for the rest.
        """
        loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        current = batches["current"]
        over = batches["is_last_batch"] and current["processed"] == current["ready"]
        place = checkpoint.get(type(self._data).__qualname__, {})
        if "version" not in place:
            place = {"group": self._data.batch_size * trainer.world_size, **place}
            place = self._mend(place, 0 if over else current["processed"], epochs["current"]["ready"] - (not over))
        epoch, done = place["epoch"], place["batches_seen"]
        in_all = batches["total"]["processed"] - (0 if over else current["processed"] - done)
        within = int(done > 0)
        for name in ("total", "current"):
            epochs[name] = {"ready": epoch + within, "started": epoch + within, "processed": epoch, "completed": epoch}
        for name, count in (("total", in_all), ("current", done)):
            batches[name] = {"ready": count, "started": count, "processed": count, "completed": count - within}
        batches["is_last_batch"] = False
        if pl_module.automatic_optimization:
            # The loggers' count of optimiser steps; Lightning adds the one of the last batch.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - within
        for counts in loop["epoch_loop.val_loop.batch_progress"].values():
            if isinstance(counts, dict):
                counts.update(dict.fromkeys(counts, 0))

    def _mend(self, place: dict[str, Any], batches: int, epoch: int) -> dict[str, Any]:
        """The place of a checkpoint of a former version, by the trainer's counters where that had lost count.

        Former versions did after a second resume within an epoch, and where they saved after `fit` had returned.

        Args:
            place: As the checkpoint has it.
            batches: That the trainer has counted in the epoch.
            epoch: In which it is.
        """
        if place.get("batches_seen") == batches:
            return place
        right = {"epoch": max(0, epoch), "batches_seen": batches, "samples_seen": batches * place["group"]}
        log.warning(
            "the checkpoint was written by a former version of m2chat that lost count of the data, as it did after a "
            "second resume within an epoch: it says %s; going on at %s, as the trainer has counted",
            {name: place.get(name) for name in right},
            right,
        )
        if right["epoch"] != place.get("epoch"):
            place = {name: value for name, value in place.items() if name != "before"}
        place = {**place, **right}
        self._data.load_state_dict(place)
        return place

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has an epoch begun where none of its batches is done: with `max_steps` Lightning always goes on with one."""
        if not self._stream().batches_before:
            trainer.fit_loop.epoch_loop.restarting = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the data opened anew if whole epochs have another number of batches than this resumed one."""
        stream = self._stream()
        if stream.batches_per_epoch != len(stream):
            trainer.fit_loop._combined_loader = None

    def _stream(self) -> ShardStream:
        stream = self._data.stream
        assert stream is not None
        return stream
