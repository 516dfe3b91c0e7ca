"""Pictures and replies that another system has left on disk, scored as our own are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.errors import UserError
from m2chat.evaluation.page import write_page
from m2chat.evaluation.results import (
    PREDICTIONS,
    RESULTS,
    prediction_row,
    read_predictions,
    settings_hash,
    versions,
    write_images,
    write_predictions,
    write_results,
)
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore
from m2chat.files import locked
from m2chat.schema import KINDS, Prediction, Reply, Segment

_BATCH = 64
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def _image(path: Path, where: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{where}: the picture {path} cannot be read ({error})") from error


def _reply(row: Mapping[str, Any], folder: Path, where: str, prefix: str = "") -> Reply:
    """A reply of at most one picture: `text`, `image` and `prompt`, or the same with ``reference_``."""
    name = row.get(f"{prefix}image")
    picture = None if not name else _image(folder / name, where)
    caption = row.get("prompt") if picture is not None or prefix or row.get("prompt") else None
    return Reply((Segment(str(row.get(f"{prefix}text") or ""), caption),), (picture,))


def _truth(row: Mapping[str, Any], folder: Path, where: str) -> Reply:
    """The true reply of a row of ``predictions.jsonl``."""
    segments = tuple(Segment(s["answer"] or "", s["caption"]) for s in row["reference"])
    images = tuple(None if s["image"] is None else _image(folder / s["image"], where) for s in row["reference"])
    return Reply(segments, images)


def read_folder(jsonl: Path, truth: Path | None) -> Iterator[Prediction]:
    """The predictions that a file describes.

    Args:
        jsonl: A JSON object a line. ``id``, ``prompt`` (what the picture should show), ``image`` (a path beside the
            file; absent or null where nothing was drawn), ``text`` (what the system said). Without `truth` also
            ``reference_image``, ``reference_text``, ``kind`` and ``request``.
        truth: Folder of an evaluation of ours; by its samples' ids everything but the system's own output comes from
            there, and samples that the system lacks count as missing.

    Raises:
        UserError: That names the line, if one is no such object, or a picture cannot be read.
    """
    if not jsonl.is_file():
        raise UserError(f"there is no file {jsonl}")
    rows: dict[str, tuple[Mapping[str, Any], str]] = {}
    for number, line in enumerate(jsonl.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{jsonl}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict) or "id" not in row or (truth is None and "prompt" not in row):
            raise UserError(f"{where} needs the keys id{'' if truth else ' and prompt'}; it has {sorted(row)}")
        if str(row["id"]) in rows:
            raise UserError(f"{where}: the id {row['id']!r} comes twice")
        rows[str(row["id"])] = row, where
    if truth is None:
        for id_, (row, where) in rows.items():
            kind = row.get("kind", "caption")
            if kind not in KINDS:
                raise UserError(f"{where}: kind {kind!r}; choose one of {', '.join(KINDS)}")
            reference = _reply(row, jsonl.parent, where, "reference_")
            request = str(row.get("request") or row["prompt"])
            yield Prediction(id_, kind, "folder", request, reference, _reply(row, jsonl.parent, where))
        return
    known = {row["id"]: row for row in read_predictions(truth)}
    if strangers := [id_ for id_ in rows if id_ not in known]:
        raise UserError(f"{jsonl}: {len(strangers)} ids are not in {truth}, the first is {strangers[0]!r}")
    for id_, own in known.items():
        row, where = rows.get(id_, ({}, str(jsonl)))
        reference = _truth(own, truth, where)
        context = None if own["context"] is None else _image(truth / own["context"], where)
        generated = _reply({"prompt": own["request"], **row}, jsonl.parent, where)
        yield Prediction(id_, own["kind"], own["source"], own["request"], reference, generated, context, own["meta"])


def metrics_of(config: Path) -> tuple[list[Any], str]:
    """The metric callbacks that a configuration names, and its data set.

    Raises:
        UserError: If it names none.
    """
    import importlib
    import pkgutil

    import yaml
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Callback

    from m2chat.callbacks.base import MetricCallback

    if not config.is_file():
        raise UserError(f"--config {config}: there is no such file; configs/eval_coco.yaml is one")
    for module in pkgutil.iter_modules(importlib.import_module("m2chat.callbacks").__path__, "m2chat.callbacks."):
        importlib.import_module(module.name)
    named = yaml.safe_load(config.read_text(encoding="utf-8")).get("trainer", {}).get("callbacks", [])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    built = parser.instantiate(parser.parse_object({"callbacks": named})).callbacks
    metrics = [item for item in built if isinstance(item, MetricCallback)]
    if not metrics:
        raise UserError(f"--config {config} names no metrics under trainer.callbacks")
    return metrics, next((item.dataset for item in built if hasattr(item, "dataset")), "")


def score_folder(jsonl: Path, out: Path, config: Path, truth: Path | None = None, name: str = "") -> Path:
    """Scores another system's outputs with the metrics of a configuration.

    Args:
        jsonl: As `read_folder` reads it.
        out: Folder to write into; what it then holds is what ``lightning test`` leaves.
        config: Whose metrics to use.
        truth: An evaluation of ours, for the reference.
        name: Of the system.

    Returns:
        ``results.json``.

    Raises:
        UserError: If the folder holds an evaluation already, or another process writes to it.
    """
    if (out / RESULTS).exists() or (out / PREDICTIONS).exists():
        raise UserError(f"{out} holds an evaluation already: name another folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=False):
        return _score(jsonl, out, config, truth, name)


def _score(jsonl: Path, out: Path, config: Path, truth: Path | None, name: str) -> Path:
    from m2chat._compat import ensure_torchvision

    ensure_torchvision()
    metrics, dataset = metrics_of(config)
    store, rows = EvalStore(), []
    predictions = list(read_folder(jsonl, truth))
    for start in range(0, len(predictions), _BATCH):
        part = predictions[start : start + _BATCH]
        for metric in metrics:
            for prediction, values in zip(part, metric.measure(store, part), strict=True):
                store.put(metric.key, prediction, values)
        rows += [prediction_row(prediction, write_images(out, prediction)) for prediction in part]
    found: dict[str, Estimate] = {}
    protocol: dict[str, Any] = {"dataset": dataset, "stage": name or jsonl.stem, "weights": str(jsonl)}
    for metric in metrics:
        found |= metric.results(store, full=True)
        protocol |= metric.protocol()
    ids = "\n".join(sorted(row["id"] for row in rows))
    protocol["samples"] = {"n": len(rows), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
    write_predictions(out, [row | {"scores": store.scores(row["id"])} for row in rows])
    path = write_results(out, found, {**protocol, "versions": versions(), "config_hash": settings_hash(protocol)})
    write_page(out)
    return path


def moments_of_folder(pictures: Path, out: Path, inception: Path | None, crop: bool) -> int:
    """Writes FID moments of true pictures.

    Args:
        pictures: Folder of pictures, at any depth.
        out: ``.npz`` file to write.
        inception: Inception's weights; None takes the micro world's network.
        crop: Whether to cut out the middle square.

    Returns:
        How many pictures there were.

    Raises:
        UserError: If there is none, or one cannot be read.
    """
    from m2chat.metrics.extractors import InceptionExtractor, MicroExtractor
    from m2chat.metrics.fid import Moments

    files = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{pictures} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    extractor = MicroExtractor() if inception is None else InceptionExtractor(str(inception), crop=crop)
    total: Moments | None = None
    for start in range(0, len(files), _BATCH):
        chosen = [_image(path, str(pictures)) for path in files[start : start + _BATCH]]
        own = Moments.of(extractor.extract(chosen))
        total = own if total is None else total + own
    assert total is not None
    total.save(out, extractor.name)
    return total.n
