"""What an evaluation leaves behind: ``results.json``, ``predictions.jsonl`` and ``images/``."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from m2chat.errors import UserError
from m2chat.evaluation.statistics import Estimate
from m2chat.files import write_whole
from m2chat.schema import Prediction, Reply

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
IMAGES = "images"
_PACKAGES = (
    "m2chat torch lightning transformers diffusers open_clip_torch sacrebleu rouge-score torch-fidelity numpy".split()
)


_NOT_SETTINGS = frozenset({"weights", "tasks", "costs", "versions", "ranks", "checkpoint"})
"""What a protocol says beyond settings: names of files, and what happened."""


def settings_hash(protocol: Mapping[str, Any]) -> str:
    """A short hash of an evaluation's settings: equal hashes, equal settings and weights.

    Args:
        protocol: Settings, and other entries that are left out, such as the names of files.
    """
    settings = {name: value for name, value in protocol.items() if name not in _NOT_SETTINGS}
    return hashlib.sha256(json.dumps(_plain(settings), sort_keys=True).encode()).hexdigest()[:16]


def natural(text: str) -> list[tuple[int, str]]:
    """Key that orders texts so that ``x10`` comes behind ``x9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def versions() -> dict[str, str | None]:
    """Package to version; None if it is not installed."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _plain(value: Any) -> Any:
    """The same in JSON's words; NaN and infinity, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _write(path: Path, text: str) -> None:
    """All of a file or nothing: a run that is killed leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [text])


def write_results(folder: Path, metrics: Mapping[str, Estimate], protocol: Mapping[str, Any]) -> Path:
    """Writes ``{"metrics": {name: {"value", "n", "low", "high"}}, "protocol": {...}}``.

    Args:
        folder: Where to.
        metrics: Name to value; NaN is written as null.
        protocol: How they came about: seed, checkpoint, steps, guidance, encoder, ...

    Returns:
        The file.
    """
    content = {"metrics": {name: asdict(item) for name, item in sorted(metrics.items())}, "protocol": protocol}
    path = folder / RESULTS
    _write(path, json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _real(value: float | None) -> float:
    return math.nan if value is None else float(value)


def read_results(path: Path) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """Inverse of `write_results`.

    Args:
        path: A ``results.json``.

    Raises:
        UserError: If the file is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {
            name: Estimate(_real(item["value"]), item["n"], _real(item["low"]), _real(item["high"]))
            for name, item in content["metrics"].items()
        }
        return metrics, content["protocol"]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no {RESULTS} of an evaluation ({error!r})") from error


def write_images(folder: Path, prediction: Prediction) -> dict[str, list[str | None]]:
    """Writes a prediction's pictures as PNG files, named after a hash of its id.

    Ids come from data sets and may hold anything, such as ``../``; so they never become file names. The names do not
    depend on the number of ranks, so that an evaluation may go on with another.

    Args:
        folder: The evaluation's folder; the pictures go to ``images/`` in it.
        prediction: What to write.

    Returns:
        Paths relative to the folder: ``context`` (at most one), ``reference`` and ``generated`` (one a segment,
        None where there is no picture).
    """
    from PIL import Image

    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(prediction.id.encode()).hexdigest()[:16]
    sets = {
        "context": (prediction.context,) if prediction.context is not None else (),
        "reference": prediction.reference.images,
        "generated": prediction.generated.images,
    }
    names: dict[str, list[str | None]] = {}
    for role, pictures in sets.items():
        names[role] = []
        for index, picture in enumerate(pictures):
            if picture is None:
                names[role].append(None)
            else:
                name = f"{IMAGES}/{stem}_{role}_{index}.png"
                Image.fromarray(picture).save(folder / name)
                names[role].append(name)
    return names


def _segments(reply: Reply, pictures: list[str | None]) -> list[dict[str, str | None]]:
    pairs = zip(reply.segments, pictures, strict=True)
    return [{"answer": item.answer, "caption": item.caption, "image": image} for item, image in pairs]


def prediction_row(prediction: Prediction, images: Mapping[str, list[str | None]]) -> dict[str, Any]:
    """A prediction as one line of ``predictions.jsonl``: enough to compute every metric again.

    Args:
        prediction: What to write.
        images: From `write_images`.
    """
    return {
        "id": prediction.id,
        "kind": prediction.kind,
        "source": prediction.source,
        "request": prediction.request,
        "context": next(iter(images["context"]), None),
        "reference": _segments(prediction.reference, images["reference"]),
        "generated": _segments(prediction.generated, images["generated"]),
        "meta": prediction.meta,
    }


def line_of(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON."""
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes ``predictions.jsonl``, one prediction a line, ordered and numbered by their ids."""
    path = folder / PREDICTIONS
    ordered = sorted(rows, key=lambda row: natural(str(row["id"])))
    _write(path, "".join(line_of({"number": number, **row}) for number, row in enumerate(ordered)))
    return path


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """The rows that `write_predictions` wrote.

    Raises:
        UserError: If there are none.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(f"no {PREDICTIONS} in {folder}: name the folder of a `lightning test` run")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
