"""The data of a run, as a checkpoint records them and `auto` compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from m2chat.models.choosing import RunRecord


def sources_of(trainer: Any) -> list[Any]:
    """The sources of a run that count: those that are trained on, else those that are evaluated.

    Args:
        trainer: The trainer; None for a module that is used without one.
    """
    configs: Mapping[str, list[Any]] = getattr(getattr(trainer, "datamodule", None), "configs", {})
    fitting = trainer is not None and trainer.state.fn == TrainerFn.FITTING
    order = ("train", "val", "test") if fitting else ("test", "val", "train")
    return next((configs[split] for split in order if configs.get(split)), [])


def worlds_of(trainer: Any) -> set[str] | None:
    """Generated worlds that the data come from, an empty name for other data; None if there are no data."""
    return {config.world or "" for config in sources_of(trainer)} or None


def run_record(trainer: Any, steps: int, of: int | None, shortened: Sequence[str]) -> RunRecord:
    """What a checkpoint records of the run that writes it; arguments as in `RunRecord`."""
    sources = sources_of(trainer)
    worlds = sorted(worlds_of(trainer) or ())
    return RunRecord(
        steps=steps, of=of, shortened=list(shortened), worlds=worlds, sources=[config.name for config in sources]
    )
