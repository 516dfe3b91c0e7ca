"""``predictions.jsonl`` and ``images/``: the replies of an evaluation, from which every metric can be computed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2chat.data.images import read_image, save_png
from m2chat.errors import UserError
from m2chat.evaluation.results import AGAIN, plain
from m2chat.files import by_number, write_whole
from m2chat.schema import Prediction, Reply, Segment
from m2chat.textfiles import read_json_lines

PREDICTIONS = "predictions.jsonl"
IMAGES = "images"
RANKED = ("inter_rel", "edit_direction", "clip", "rouge_l", "clip_i")
"""Scores that rank samples from worst to best: the first of them that an evaluation has is used."""
_COSINES = frozenset({"clip", "clip_i", "edit_direction", "edit_clip_i_source", "edit_text_score"})
"""Scores that tables show times 100."""
_NO_SCORES = frozenset({"bleu_statistics", "attributes", "seen", "real", "generated", "frame_clip"})
"""Entries of a prediction's ``scores`` that are no scores of the sample."""


def write_images(folder: Path, prediction: Prediction) -> dict[str, list[str | None]]:
    """Writes a prediction's pictures as PNG files, named after a hash of its id.

    Ids come from data sets and may hold anything, such as ``../``, so they never become file names. The names do not
    depend on the number of ranks, so that an evaluation may be resumed with another.

    Args:
        folder: Folder of the evaluation; the pictures go to ``images/`` in it.
        prediction: Prediction with its pictures.

    Returns:
        Paths relative to the folder: ``context`` (at most one), ``reference`` and ``generated`` (one per segment,
        None where there is no picture).
    """
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
                write_whole(folder / name, save_png(picture))
                names[role].append(name)
    return names


def _segments(reply: Reply, pictures: list[str | None]) -> list[dict[str, str | None]]:
    pairs = zip(reply.segments, pictures, strict=True)
    return [{"answer": item.answer, "caption": item.caption, "image": image} for item, image in pairs]


def prediction_row(prediction: Prediction, images: Mapping[str, list[str | None]]) -> dict[str, Any]:
    """A prediction as a line of ``predictions.jsonl``, from which every metric can be computed again.

    Args:
        prediction: Prediction whose pictures are on disk.
        images: Their paths, from `write_images`.
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
    """A row as a line of JSON, with its newline."""
    return json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes ``predictions.jsonl``, one prediction per line, ordered and numbered by id."""
    path = folder / PREDICTIONS
    ordered = sorted(rows, key=lambda row: by_number(str(row["id"])))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, ["".join(line_of({"number": number, **row}) for number, row in enumerate(ordered))])
    return path


def read_predictions(folder: Path, *keys: str) -> list[dict[str, Any]]:
    """The rows that `write_predictions` wrote.

    Args:
        folder: Folder of the evaluation.
        *keys: What every row needs besides its ``id``.

    Raises:
        UserError: If there is no file, or it is broken.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(f"no {PREDICTIONS} in {folder}: name the folder of a `lightning test` run")
    try:
        rows: list[dict[str, Any]] = read_json_lines(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({error}): {AGAIN}") from error
    for number, row in enumerate(rows, 1):
        if fault := _row_fault(row, ("id", *keys)):
            raise UserError(f"{path} is broken (row {number} {fault}): {AGAIN}")
    return rows


def _row_fault(row: object, keys: Sequence[str]) -> str:
    """What is wrong with the shape of a prediction, empty if nothing is."""
    if not isinstance(row, dict):
        return f"is no object but {type(row).__name__}"
    if lost := [key for key in keys if key not in row]:
        return f"lacks {', '.join(lost)}"
    for key, is_right in _SHAPES.items():
        if key in row and not is_right(row[key]):
            return f"has {key} of another kind"
    return ""


def _is_reply(segments: object) -> bool:
    """Whether a value is that of ``reference`` or ``generated``."""
    return isinstance(segments, list) and all(
        isinstance(item, dict)
        and all(name in item and isinstance(item[name], str | None) for name in ("answer", "caption", "image"))
        for item in segments
    )


_SHAPES: dict[str, Callable[[object], bool]] = {
    "id": lambda value: isinstance(value, str),
    "scores": lambda value: isinstance(value, dict),
    "meta": lambda value: isinstance(value, dict),
    "context": lambda value: isinstance(value, str | None),
    "reference": _is_reply,
    "generated": _is_reply,
}
"""Entry of a prediction to the check of its value's kind."""


def read_reply(folder: Path, segments: Iterable[Mapping[str, str | None]]) -> Reply:
    """A reply with its pictures, from ``reference`` or ``generated`` of a row.

    Args:
        folder: Folder of the evaluation.
        segments: ``answer``, ``caption`` and ``image`` of each segment.

    Raises:
        OSError: If a picture is missing.
        BadImage: If it cannot be decoded.
    """
    texts, pictures = [], []
    for segment in segments:
        name = segment["image"]
        texts.append(Segment(segment["answer"] or "", segment["caption"]))
        pictures.append(None if name is None else read_image(folder / name))
    return Reply(tuple(texts), tuple(pictures))


def sample_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one prediction by name, scaled as tables show them.

    Args:
        row: Row of ``predictions.jsonl``.

    Returns:
        Means of lists; truth values and cosines times 100; BLEU of the sample's own counts. Undefined scores are left
        out.
    """
    scores: dict[str, float] = {}
    recorded = row.get("scores", {})
    for name, value in recorded.items():
        if name in _NO_SCORES or name.endswith(("_not_finite", "_oracle")) or value is None or value == []:
            continue
        try:
            numbers = np.asarray(value)
        except ValueError:  # lists of different lengths, which no metric writes
            continue
        if numbers.dtype.kind in "bif":
            factor = 100.0 if name in _COSINES or numbers.dtype.kind == "b" else 1.0
            scores[name] = factor * float(numbers.mean())
    counts = recorded.get("bleu_statistics")
    if counts and isinstance(counts, list) and all(isinstance(count, int | float) for count in counts):
        from m2chat.metrics.text_overlap import bleu  # torchmetrics takes seconds to import

        scores |= {f"bleu_{order}": bleu([counts], order) for order in (1, 2)}
    return {name: value for name, value in scores.items() if math.isfinite(value)}
