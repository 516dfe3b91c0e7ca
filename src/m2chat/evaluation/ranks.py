"""Exchange between the processes of one evaluation; nothing is exchanged where there is one process."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(value: T) -> list[T]:
    """The values of all ranks, in the order of ranks; every rank must call it."""
    _, size = world()
    if size == 1:
        return [value]
    values: list[T | None] = [None] * size
    distributed.all_gather_object(values, value)
    return [item for item in values if item is not None]
