"""Pictures and replies that another system has left on disk, scored as M²Chat's are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.data.images import BadImage, read_image
from m2chat.errors import UserError
from m2chat.evaluation.page import write_page
from m2chat.evaluation.parts import PicturePart, reply_of, text_at
from m2chat.evaluation.predictions import (
    PREDICTIONS,
    prediction_row,
    read_predictions,
    read_reply,
    write_images,
    write_predictions,
)
from m2chat.evaluation.results import RESULTS, settings_hash, versions, write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore
from m2chat.files import locked
from m2chat.schema import KINDS, Prediction, Reply, Segment
from m2chat.textfiles import is_utf8, lines_of, not_utf8

_BATCH = 64


def picture_at(path: Path, where: str) -> NDArray[np.uint8]:
    """A picture file, RGB, (H, W, 3), 0-255.

    Args:
        path: File.
        where: Place that names it, for the error.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return read_image(path)
    except (OSError, ValueError, BadImage) as error:  # ValueError: a path with NUL or half of a surrogate pair
        raise UserError(f"{where}: the picture {path} cannot be read ({error})") from error


def _reply(row: Mapping[str, Any], folder: Path, where: str, prefix: str = "") -> Reply:
    """A reply: `parts`, or `text`, `image` and `prompt`, or the same with ``reference_``."""
    name = text_at(row, f"{prefix}image", where)
    text, prompt = text_at(row, f"{prefix}text", where), text_at(row, "prompt", where)
    if (parts := row.get(f"{prefix}parts")) is not None:
        if name or text:
            raise UserError(f"{where}: {prefix}parts and {prefix}text or {prefix}image: a reply is one or the other")
        return reply_of(_parts(parts, folder, f"{where}: {prefix}parts"), prompt)
    picture = None if not name else picture_at(folder / name, where)
    # Without a picture, one was due where the line states what it should show, an empty text too.
    caption = row.get("prompt") if picture is not None or prefix or prompt else None
    return Reply((Segment(text, caption),), (picture,))


def _parts(parts: object, folder: Path, where: str) -> Iterator[str | PicturePart]:
    """Texts and pictures of a reply in their order.

    Raises:
        UserError: If a part is neither, or a picture cannot be read.
    """
    for part in parts if isinstance(parts, list) else [None]:
        if isinstance(part, str):
            yield part
            continue
        if not isinstance(part, dict) or not part.keys() & {"text", "image"}:
            raise UserError(
                f'{where}: write a list of texts and objects such as {{"image": "a.png", "caption": "..."}}'
            )
        if text := text_at(part, "text", where):
            yield text
        if "image" in part:
            name, caption = text_at(part, "image", where), text_at(part, "caption", where)
            picture = picture_at(folder / name, where) if name else None
            yield PicturePart(picture, None if part.get("caption") is None else caption)


def read_folder(jsonl: Path, reference: Path | None) -> Iterator[Prediction]:
    """The predictions that a file describes.

    Args:
        jsonl: A JSON object per line. ``id``, ``prompt`` (what the picture should show), ``image`` (a path beside the
            file; absent or null where nothing was drawn), ``text`` (the system's words). Without `reference` also
            ``reference_image``, ``reference_text``, ``kind`` and ``request``. A reply of several texts and pictures is
            a list ``parts``, or ``reference_parts``: texts, and objects with ``image`` and ``caption`` (or ``text``).
        reference: Folder of an evaluation of M²Chat. Everything but the system's outputs is taken from it by id, and
            samples that the system lacks count as missing.

    Raises:
        UserError: If a line is no such object, which is named, or a picture cannot be read.
    """
    rows = _read_lines(jsonl, ("id",) if reference else ("id", "prompt"))
    if reference is None:
        for id_, (row, where) in rows.items():
            kind = row.get("kind", "caption")
            if kind not in KINDS:
                raise UserError(f"{where}: kind {kind!r}; choose one of {', '.join(KINDS)}")
            expected = _reply(row, jsonl.parent, where, "reference_")
            request = text_at(row, "request", where) or text_at(row, "prompt", where)
            yield Prediction(id_, kind, "folder", request, expected, _reply(row, jsonl.parent, where))
        return
    keys = ("kind", "source", "request", "context", "reference", "meta")
    samples = {sample["id"]: sample for sample in read_predictions(reference, *keys)}
    if strangers := [id_ for id_ in rows if id_ not in samples]:
        raise UserError(f"{jsonl}: {len(strangers)} ids are not in {reference}, the first is {strangers[0]!r}")
    for id_, sample in samples.items():
        row, where = rows.get(id_, ({}, str(jsonl)))
        try:
            expected = read_reply(reference, sample["reference"])
        except (OSError, BadImage) as error:
            raise UserError(f"{reference}: a reference picture of {id_!r} cannot be read ({error})") from error
        context = None if sample["context"] is None else picture_at(reference / sample["context"], where)
        generated = _reply({"prompt": sample["request"], **row}, jsonl.parent, where)
        yield Prediction(
            id_, sample["kind"], sample["source"], sample["request"], expected, generated, context, sample["meta"]
        )


def _read_lines(jsonl: Path, keys: Sequence[str]) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The objects of a file by id, each with its place for messages.

    Args:
        jsonl: A JSON object per line; empty lines are skipped.
        keys: Keys that every object needs; one with ``reference_parts`` needs no ``prompt``.

    Raises:
        UserError: If the file does not exist or holds none, or a line is no such object.
    """
    if not jsonl.is_file():
        raise UserError(f"there is no file {jsonl}")
    rows: dict[str, tuple[Mapping[str, Any], str]] = {}
    for number, line in enumerate(lines_of(jsonl), 1):
        if line.isspace():
            continue
        where = f"{jsonl}:{number}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise not_utf8(jsonl, line, "not UTF-8: save it as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is no JSON object but {type(row).__name__}: write one object a line")
        if any(key not in row and not (key == "prompt" and "reference_parts" in row) for key in keys):
            raise UserError(f"{where} needs the keys {' and '.join(keys)}; it has {sorted(row)}")
        if row["id"] is None:
            raise UserError(f"{where}: the id is null; give every line an id of its own")
        if not isinstance(row["id"], str | int) or isinstance(row["id"], bool):
            raise UserError(f"{where}: the id is {json.dumps(row['id'])[:60]}: write a text or a whole number")
        if not is_utf8(str(row["id"]).encode("utf-8", "surrogatepass")):
            raise UserError(f"{where}: the id {row['id']!r} holds half of a surrogate pair: write another")
        if str(row["id"]) in rows:
            raise UserError(f"{where}: the id {row['id']!r} comes twice")
        rows[str(row["id"])] = row, where
    if not rows:
        raise UserError(f"{jsonl} holds no line: write one object a line for each sample")
    return rows


def metrics_of(config: Path) -> tuple[list[Any], str]:
    """The metric callbacks that a configuration names, and its data set.

    Raises:
        UserError: If it cannot be read, or names none.
    """
    import argparse
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
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {config} is not YAML: {' '.join(str(error).split())}") from error
    trainer = settings.get("trainer") if isinstance(settings, dict) else None
    named = trainer.get("callbacks") if isinstance(trainer, dict) else None
    if not isinstance(named, list):
        raise UserError(
            f"--config {config} has no list trainer.callbacks, which names the metrics; configs/eval_coco.yaml is one "
            "that has"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    try:
        built = parser.instantiate(parser.parse_object({"callbacks": named})).callbacks
    except argparse.ArgumentError as error:
        raise UserError(f"--config {config}: trainer.callbacks cannot be built: {error}") from error
    metrics = [item for item in built if isinstance(item, MetricCallback)]
    if not metrics:
        raise UserError(f"--config {config} names no metrics under trainer.callbacks")
    return metrics, next((item.dataset for item in built if hasattr(item, "dataset")), "")


def score_folder(jsonl: Path, out: Path, config: Path, reference: Path | None = None, name: str = "") -> Path:
    """Scores another system's outputs with the metrics of a configuration.

    Args:
        jsonl: File as `read_folder` reads it.
        out: Folder to write into; it then holds what ``lightning test`` leaves.
        config: Configuration that names the metrics.
        reference: Folder of an evaluation of M²Chat with the reference replies; None if the file has its own.
        name: Name of the system.

    Returns:
        Path of ``results.json``.

    Raises:
        UserError: If the folder holds an evaluation already, or another process writes to it.
    """
    if (out / RESULTS).exists() or (out / PREDICTIONS).exists():
        raise UserError(f"{out} holds an evaluation already: name another folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=False):
        return _score(jsonl, out, config, reference, name)


def _score(jsonl: Path, out: Path, config: Path, reference: Path | None, name: str) -> Path:
    metrics, dataset = metrics_of(config)
    protocol = {"dataset": dataset, "stage": name or jsonl.stem, "weights": str(jsonl)}
    return score_predictions(read_folder(jsonl, reference), out, metrics, protocol)


def score_predictions(
    predictions: Iterable[Prediction], out: Path, metrics: Sequence[Any], protocol: Mapping[str, Any]
) -> Path:
    """Scores replies, and writes what ``lightning test`` leaves.

    Args:
        predictions: Replies with their references; taken some at a time.
        out: Folder to write into.
        metrics: Metric callbacks.
        protocol: What was measured, for ``results.json``: ``dataset``, ``stage`` (name of the system), ``weights``, …

    Returns:
        Path of ``results.json``.
    """
    store, rows, results = EvalStore(), list[dict[str, Any]](), dict[str, Estimate]()
    coming = iter(predictions)
    while batch := list(islice(coming, _BATCH)):
        for metric in metrics:
            metric.update(store, batch)
        rows += [prediction_row(prediction, write_images(out, prediction)) for prediction in batch]
    whole = dict(protocol)
    for metric in metrics:
        results |= metric.results(full=True)
        whole |= metric.protocol()
    ids = "\n".join(sorted(row["id"] for row in rows))
    whole["samples"] = {"n": len(rows), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
    write_predictions(out, [row | {"scores": store.scores(row["id"])} for row in rows])
    path = write_results(out, results, {**whole, "versions": versions(), "config_hash": settings_hash(whole)})
    write_page(out)
    return path
