"""Which sources a run opens, and how each of them is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from m2chat.data.dataset import SourceConfig
from m2chat.data.remote import is_remote
from m2chat.data.shards import find_shards
from m2chat.data.stream import needs_an_index
from m2chat.errors import UserError


def without(sources: list[SourceConfig], names: list[str]) -> list[SourceConfig]:
    """The sources without those of some names.

    Raises:
        UserError: If a name is unknown: leaving out nothing would go unnoticed.
    """
    if unknown := set(names) - {source.name for source in sources} if sources else set():
        known = ", ".join(source.name for source in sources)
        raise UserError(f"data.leave_out names {', '.join(sorted(unknown))}, but data.train has {known}")
    return [source for source in sources if source.name not in names]


def require_sources(configs: Mapping[str, Sequence[SourceConfig]], stage: str) -> None:
    """Raises if a run has nothing to do: Lightning would do nothing, and end as if all were well.

    Args:
        configs: Configurations of the sources of ``train``, ``val`` and ``test``.
        stage: What Lightning calls the run, such as ``fit``; any but three need none.

    Raises:
        UserError: If it has no sources.
    """
    split, remedy = {
        "fit": ("train", "configs/stage1.yaml trains"),
        "validate": ("val", "configs/stage1.yaml has data to validate on"),
        "test": ("test", "configs/eval_mmdialog.yaml evaluates"),
    }.get(stage, ("", ""))
    if split and not configs[split]:
        there = [f"data.{name}" for name, sources in configs.items() if sources]
        raise UserError(
            f"`lightning {stage}` needs data.{split}, and the configuration has {' and '.join(there) or 'no data'} "
            f"alone: name another --config ({remedy}), or set data.{split}"
        )


def is_read_in_sequence(
    config: SourceConfig, split: str, samples_per_epoch: int | None, bucket_window: int, features: str | None
) -> bool:
    """Whether the shards of a source are read whole, one after the other, and not indexed.

    Args:
        config: Configuration of the source.
        split: ``train``, ``val`` or ``test``.
        samples_per_epoch: Setting of the run.
        bucket_window: Setting of the run, ``length_bucketing``.
        features: Setting of the run.

    Raises:
        UserError: If it is to be, and something needs an index.
    """
    if config.stream == "random" or (config.stream == "auto" and (split != "train" or not is_remote(config.path))):
        return False
    why = needs_an_index(samples_per_epoch, bucket_window)
    if split != "train":
        why = "evaluation takes every reply once and in order, which needs an index"
    elif features is not None:
        why = "data.features belong to the samples of an index: leave the setting out"
    if not why:
        return True
    if config.stream == "sequential":
        raise UserError(f"{split} source {config.name!r} has stream: sequential, and {why}, or give it stream: random")
    rank_zero_info(
        f"{split} source {config.name!r}: every shard is read once for an index and then one sample at a time "
        f"(stream: random), not whole shards in sequence, since {why}"
    )
    return False


def refuse_overlap(configs: Mapping[str, Sequence[SourceConfig]]) -> None:
    """Raises if a shard is trained on and validated on.

    Args:
        configs: Configurations of the sources of ``train`` and ``val``.

    Raises:
        UserError: If one is.
    """
    shards = {
        split: {
            str(place.resolve() if isinstance(place, Path) else place)
            for config in configs[split]
            for place in find_shards(config.path, split, allow_pipe=config.allow_pipe, run_pipes=False)
        }
        for split in ("train", "val")
    }
    if both := sorted(shards["train"] & shards["val"]):
        raise UserError(
            f"train and val share {len(both)} shards, the first is {both[0]}: results on seen data mean nothing; "
            "give them different paths"
        )
