"""``results.json``: the values of an evaluation, and how they were measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from m2chat.errors import UserError
from m2chat.evaluation.statistics import Estimate
from m2chat.files import write_whole

RESULTS = "results.json"
AGAIN = "evaluate again; evaluation.resume takes the replies that are whole"
"""What to do about a damaged file of an evaluation."""
_PACKAGES = (
    "m2chat torch lightning transformers diffusers open_clip_torch sacrebleu rouge-score torch-fidelity numpy".split()
)
_NOT_SETTINGS = frozenset({"weights", "tasks", "costs", "versions", "ranks", "checkpoint", "world"})
"""Entries of a protocol that are not settings: names of files, what happened, and the world of the data set."""


def settings_hash(protocol: Mapping[str, Any]) -> str:
    """A hash of 16 hex digits; two evaluations with equal hashes have equal settings and weights.

    Args:
        protocol: Settings, and further entries that do not count, such as names of files.
    """
    settings = {name: value for name, value in protocol.items() if name not in _NOT_SETTINGS}
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """Package name to version; None if it is not installed."""
    installed: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed


def plain(value: Any) -> Any:
    """The value as JSON can hold it; NaN and infinity, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def write_results(folder: Path, metrics: Mapping[str, Estimate], protocol: Mapping[str, Any]) -> Path:
    """Writes ``{"metrics": {name: {"value", "n", "low", "high"}}, "protocol": {...}}``.

    Args:
        folder: Folder of the evaluation; made if it does not exist.
        metrics: Name to value; NaN is written as null.
        protocol: How the values were measured: seed, checkpoint, steps, guidance, encoder, ...

    Returns:
        Path of the file.
    """
    content = {"metrics": {name: asdict(item) for name, item in sorted(metrics.items())}, "protocol": protocol}
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"])
    return path


def _real(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _count(value: object) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError(f"n is {value!r:.50}")
    return value


def read_results(path: Path) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Metrics and protocol of a ``results.json``: the inverse of `write_results`.

    Raises:
        UserError: If the file cannot be read, or holds no results.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the {RESULTS} of an evaluation, such as {path / RESULTS}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {
            name: Estimate(_real(item["value"]), _count(item["n"]), _real(item["low"]), _real(item["high"]))
            for name, item in content["metrics"].items()
        }
        return metrics, dict(content["protocol"].items())
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise UserError(
            f"{path} is no {RESULTS} of an evaluation, or was cut off or damaged ({reason}): {AGAIN}"
        ) from error


def newest_results(root: Path) -> Path:
    """The newest ``results.json`` below a folder.

    Raises:
        UserError: If there is none.
    """
    paths = sorted(root.rglob(RESULTS), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise UserError(
            f"no {RESULTS} below {str(root)!r}; run `lightning test --config configs/eval_mmdialog.yaml` first"
        )
    return paths[-1]
