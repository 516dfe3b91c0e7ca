"""Which checkpoint ``auto`` takes: the newest of a run that ended by itself, at its full length, on the same data."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from m2chat.models.checkpoints import find_checkpoint
from m2chat.models.fingerprints import Fingerprints

RUN = "run"
"""Key of a checkpoint's record of its run."""
_LISTED = 3
"""Checkpoints that were not taken that are named one by one."""


class RunRecord(TypedDict):
    """What a checkpoint knows of the training that wrote it.

    Args:
        steps: Optimiser steps done.
        of: Optimiser steps of the whole training; None if it has no end.
        shortened: Settings of the command line that made it shorter than its configuration, such as
            ``trainer.max_steps=20``.
        worlds: Generated worlds that its data come from; an empty name stands for data of the user's.
        sources: Names of its data.
    """

    steps: int
    of: int | None
    shortened: list[str]
    worlds: list[str]
    sources: list[str]


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint that was taken, and those that were not.

    Args:
        path: Its file; None if there is none.
        about: Steps, data and age of it, for the user.
        others: Newer ones that were passed over, each with the reason.
    """

    path: Path | None
    about: str
    others: list[str]


def choose_checkpoint(
    root: Path, stage: str, backbones: Fingerprints, worlds: Collection[str] | None
) -> ChosenCheckpoint:
    """The newest checkpoint of a finished run of a stage on the same backbones and kind of data.

    A root that is itself the folder of one run names that run: its newest checkpoint is taken, finished or not.

    Args:
        root: Folder to look in, at any depth; it need not exist.
        stage: The stage that must have written it.
        backbones: The backbones that it must fit.
        worlds: Worlds of the data at hand, as in `RunRecord`; None accepts any.
    """
    others: list[str] = []
    is_one_run = (root / "checkpoints").is_dir()

    def is_wanted(path: Path, payload: Mapping[str, Any]) -> bool:
        fault = "" if is_one_run else _fault(payload.get(RUN), worlds) or _other_updates(payload, stage, backbones)
        if fault:
            others.append(f"{path} ({fault})")
        return not fault

    found: list[Mapping[str, Any]] = []
    path = find_checkpoint(root, stage, backbones, is_wanted, found)
    about = "" if path is None else ", ".join(_about(found[-1].get(RUN), path))
    if len(others) > _LISTED:
        others[_LISTED:] = [f"{len(others) - _LISTED} more"]
    return ChosenCheckpoint(path, about, others)


def _fault(record: RunRecord | None, worlds: Collection[str] | None) -> str:
    """Why a checkpoint is not taken; empty if it is."""
    if record is None:
        return "an earlier version wrote it, which did not record whether the run was finished"
    if record["of"] is None or record["steps"] < record["of"]:
        return f"not finished: {record['steps']} of {record['of'] or 'endless'} steps"
    if record["shortened"]:
        return f"{record['steps']} steps, shortened on the command line by {', '.join(record['shortened'])}"
    if worlds is not None and not set(worlds) & set(record["worlds"]):
        return f"trained on {_data(record)}, other data than those of this run"
    return ""


def _other_updates(payload: Mapping[str, Any], stage: str, backbones: Fingerprints) -> str:
    """Whether a checkpoint has other low-rank updates than the run; those of stage 1 have none and fit any."""
    recorded = ((payload.get("config") or {}).get("backbone") or {}).get("new_lora") or {}
    ours = asdict(backbones.backbone.new_lora) if backbones.backbone.new_lora is not None else {}
    if stage == "align" or all(recorded.get(name) == ours.get(name) for name in ("rank", "layers")):
        return ""
    return f"backbone.new_lora is {recorded or None} there, and {ours or None} in this run"


def _about(record: RunRecord | None, path: Path) -> list[str]:
    known = [] if record is None else [f"{record['steps']} steps", _data(record)]
    return [*known, _age(time.time() - path.stat().st_mtime)]


def _data(record: RunRecord) -> str:
    names = " and ".join(filter(None, (", ".join(record["sources"][:-1]), *record["sources"][-1:])))
    worlds = ", ".join(filter(None, record["worlds"]))
    return f"{names or 'no data'}" + (f" of the world {worlds}" if worlds else "")


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} old"
    return "just written"
