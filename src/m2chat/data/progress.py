"""How far training has come in its data: the epoch, and in it the batches whose optimiser step is done."""

from __future__ import annotations

import logging
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer

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


class DataPlace:
    """The place of a training in its data: every iteration over them is an epoch, or the rest of one after resuming.

    Args:
        data: Whose trainer counts the epochs and steps; None counts none.
    """

    def __init__(self, data: LightningDataModule) -> None:
        self._data = data
        self.stream: ShardStream | None = None
        """The training data, once they are open."""
        self._start: dict[str, Any] = {}
        """Where the next iteration starts, as in a checkpoint; empty for the beginning."""
        self._finished = FinishedBatches()

    def begin(self) -> None:
        """Begins a training; a checkpoint is restored after this."""
        if self.stream is not None:  # of a run before this one
            self.stream, self._start = None, {}

    def open(self, stream: ShardStream) -> None:
        """Goes on in data that were opened, perhaps anew: Lightning may do so for each epoch."""
        if self._data.trainer is not None:
            self._leave_epoch()
        self.stream = stream
        for name in ("seed", "manifest"):
            if name in self._start and self._start[name] != getattr(stream, name):
                log.warning(
                    "the checkpoint was trained with another %s of the data (%s, now %s): the order of the samples is "
                    "a new one, so the rest of this epoch may repeat or miss some",
                    "seed" if name == "seed" else "set of shards, weights or length_bucketing",
                    self._start[name],
                    getattr(stream, name),
                )
        self._finished.start(0)
        self.seek()

    def seek(self) -> None:
        """Brings the stream to where an iteration starts."""
        assert self.stream is not None
        self._leave_epoch()
        start = self._start
        if not start:
            # A trainer that has fitted before goes on with its epochs. Where a checkpoint is still to be restored this
            # is 0, and the place of the checkpoint comes with `restore`.
            trainer = self._data.trainer
            progress: Any = trainer.fit_loop.epoch_progress.current if trainer else None
            start = {"epoch": int(progress.processed) if progress else 0}
        elif start["samples_seen"] >= self.stream.size:  # `samples_per_epoch` has become smaller.
            start = {"epoch": start["epoch"] + 1, "lanes": start.get("lanes")}
        # Checkpoints of former versions do not know the last three.
        names = ("samples_seen", "batches_seen", "before", "group", "lanes")
        self.stream.start_at(start["epoch"], **{name: start[name] for name in names if name in start})
        self._finished.start(self.stream.batches_before)

    def hand_out(self) -> None:
        """Counts a batch that is handed out."""
        self._finished.hand_out(self._step())

    def state(self) -> dict[str, Any]:
        """The place, the same on every rank: behind the batches whose optimiser step is done."""
        trainer = self._data.trainer
        if self.stream is None or trainer is None:
            return {}
        finished = self._finished.finished(self._step())
        if finished >= trainer.num_training_batches:  # `limit_train_batches` may end an epoch early.
            finished = max(finished, len(self.stream))
        return {**self.stream.state(finished), "version": VERSION}

    def restore(self, place: dict[str, Any]) -> None:
        """Goes on at a place of a run before, with any number of ranks and workers."""
        self._start = dict(place)
        if self.stream is not None and self._data.trainer is not None:
            # Sharded strategies restore after their setup, in which the schedule has asked for the number of steps and
            # so opened the data at the start. Lightning opens them again where it finds none.
            self._data.trainer.fit_loop._combined_loader = None

    def _leave_epoch(self) -> None:
        """Goes to the next epoch if any batch of this one was taken: nobody iterates twice over the same."""
        if self.stream is not None and self._finished.any_handed_out:
            self._start = self.stream.state(len(self.stream))

    def _step(self) -> int:
        """Optimiser steps of the trainer."""
        return self._data.trainer.global_step if self._data.trainer is not None else 0


class KeepsCount(Callback):
    """Makes Lightning count as the data module does, which adds this callback to its trainer.

    Lightning counts batches of an unfinished accumulation window as done, although no checkpoint holds their gradients.
    Its restored counters do not fit each other after a crash and where `max_steps` ended a run within an epoch. And it
    asks for the length of an epoch only once.

    Args:
        place: Whose count is the right one.
    """

    def __init__(self, place: DataPlace) -> None:
        self._place = place

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the fit loop's counters anew: as Lightning has them at the end of a batch, or between two epochs.

        A validation that was interrupted is left out: Lightning would take the first replies again for the rest.
        """
        loop = checkpoint["loops"]["fit_loop"]
        batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
        current = batches["current"]
        over = batches["is_last_batch"] and current["processed"] == current["ready"]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        place = checkpoint.get(type(data).__qualname__, {})
        if "version" not in place:
            place = {"group": data.batch_size * trainer.world_size, **place}
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
        self._place.restore(place)
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
        stream = self._place.stream
        assert stream is not None
        return stream
