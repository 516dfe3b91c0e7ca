"""One evaluation to look at: as a text for the terminal, and as ``report.html``, a page that loads nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.evaluation.charts import Bar, bar_charts, histogram
from m2chat.evaluation.markup import Cells, aligned
from m2chat.evaluation.names import GROUPS, STAGES, Group, grouped, metric_name, shown_value
from m2chat.evaluation.paper import NOTE, paper_cell
from m2chat.evaluation.predictions import IMAGES, RANKED, read_predictions, sample_scores
from m2chat.evaluation.results import RESULTS, read_results
from m2chat.evaluation.statistics import Estimate
from m2chat.files import write_whole

PAGE = "report.html"
SHOWN = 6
"""Samples in each part of the gallery."""
_REPORTED = ("checkpoint", "stage", "layout", "seed", "steps", "guidance", "clip_score_encoder", "fid_extractor")
"""Entries of the protocol in the text."""
_PROTOCOL = (
    "stage", "weights", "weights_digest", "dataset", "given", "context", "layout", "conditioner", "steps", "guidance",
    "seeds", "samples", "clip_score_encoder", "fid_extractor", "inter_rel", "config_hash", "ranks", "precision",
)  # fmt: skip
"""Entries of the protocol on the page."""

_SHOWN_KEYS = ("kind", "request", "context", "reference", "generated")
"""Entries of a prediction that the page shows."""

PredictionRow = Mapping[str, Any]
"""A row of ``predictions.jsonl``."""


def metric_cells(metrics: Mapping[str, Estimate], dataset: str = "") -> dict[Group, Cells]:
    """The metrics over all samples by group, each with its interval, the paper's number, its meaning and its key.

    Args:
        metrics: Metric name to value; names with a kind of sample, ``name/kind``, are left out.
        dataset: Data set whose numbers of the paper are shown: ``coco``, ``cc3m`` or ``mmdialog``.
    """
    tables: dict[Group, Cells] = {}
    for group, names in grouped(name for name in metrics if "/" not in name).items():
        cells: Cells = [("metric", "value", "95 % interval", "n", "paper (7B, real data)", "meaning", "key")]
        for name in names:
            item, known = metrics[name], metric_name(name)
            low, high = shown_value(name, item.low), shown_value(name, item.high)
            interval = "" if math.isnan(item.low) else f"{low} ... {high}"
            n = "" if item.n is None else f"{item.n:,}"
            paper = paper_cell(dataset, name)
            cells.append((known.plain, shown_value(name, item.value), interval, n, paper, known.meaning, name))
        tables[group] = cells
    return tables


def kind_cells(metrics: Mapping[str, Estimate]) -> Cells:
    """The metrics called ``name/kind``, one kind of sample per column; no cells if there are none."""
    split = [name.split("/") for name in metrics if "/" in name]
    kinds = sorted({kind for _, kind in split})
    cells: Cells = [("metric", *kinds)]
    for names in grouped(dict.fromkeys(name for name, _ in split)).values():
        for name in names:
            values = [metrics.get(f"{name}/{kind}") for kind in kinds]
            shown = ("" if item is None else shown_value(name, item.value) for item in values)
            cells.append((metric_name(name).plain, *shown))
    return cells if kinds else []


def report(path: Path) -> str:
    """A ``results.json`` as Markdown: how it was measured, its metrics, and where the pictures are.

    Raises:
        UserError: If the file holds no results.
    """
    metrics, protocol = read_results(path)
    dataset = str(protocol.get("dataset") or "")
    lines = [f"## {dataset or path.parent.name}", ""]
    for group, cells in metric_cells(metrics, dataset).items():
        # A terminal is too narrow for all columns: results have their meaning, the rest its key in the file.
        kept: tuple[int, ...] = (0, 1, 2, 3, 4, 5) if group == "headline" else (0, 1, 2, 3, 6)
        if not any(row[4] for row in cells[1:]):
            kept = tuple(column for column in kept if column != 4)
        lines += [f"### {GROUPS[group]}", "", aligned([tuple(row[column] for column in kept) for row in cells]), ""]
        lines += [NOTE, ""] if group == "headline" else []
    if by_kind := kind_cells(metrics):
        lines += ["### By kind of sample", "", aligned(by_kind), ""]
    lines += ["### How it was measured", ""]
    lines += [f"- {name}: {protocol[name]}" for name in _REPORTED if protocol.get(name) is not None] + [""]
    for title, there in (("Pictures", path.parent / IMAGES), ("Page", path.parent / PAGE)):
        lines += [f"{title}: {there}"] if there.exists() else []
    return "\n".join(lines)


def write_page(folder: Path, beside: Mapping[str, Path] | None = None, out: Path | None = None) -> Path:
    """Writes the page of an evaluation.

    Args:
        folder: Folder with ``results.json``, ``predictions.jsonl`` and the pictures.
        beside: Name to folder of further evaluations of the same samples, whose pictures are shown beside this one's
            (Fig. 4).
        out: File to write; None means ``report.html`` in the folder.

    Returns:
        Path of the file.

    Raises:
        UserError: If a folder holds no evaluation.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    metrics, protocol = read_results(folder / RESULTS)
    rows = read_predictions(folder, *_SHOWN_KEYS)
    dataset = str(protocol.get("dataset") or folder.name)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template(PAGE).render(
        dataset=dataset,
        stage=STAGES.get(protocol.get("stage", ""), protocol.get("stage", "")),
        protocol=_protocol(protocol),
        tables=[
            (group, GROUPS[group], [[cell.replace("...", "…") for cell in row] for row in cells[1:]])
            for group, cells in metric_cells(metrics, dataset).items()
        ],
        note=NOTE.replace("`", ""),
        plots=[Markup(plot) for plot in _plots(metrics, rows)],
        pairs=_side_by_side({"this": folder, **beside}, SHOWN * 2) if beside else None,
        gallery=_gallery(rows),
        picture=lambda name: _data(folder, name),
    )
    path = out or folder / PAGE
    write_whole(path, [text])
    return path


def _protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The entries of the protocol on the page, as texts."""
    entries = {name: str(protocol[name]) for name in _PROTOCOL if protocol.get(name)}
    tasks, versions = (
        value if isinstance(value := protocol.get(name), Mapping) else {} for name in ("tasks", "versions")
    )
    entries["tasks"] = ", ".join(f"{kind}: {how}" for kind, how in tasks.items())
    entries["versions"] = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    return {name: text for name, text in entries.items() if text}


def _plots(metrics: Mapping[str, Estimate], rows: Sequence[PredictionRow]) -> list[str]:
    """The metrics with intervals, and a histogram of each score of single samples; each an ``<svg>``."""
    bars = [
        Bar(metric_name(name).plain, metrics[name].value, metrics[name].low, metrics[name].high)
        for name in grouped(name for name in metrics if "/" not in name).get("headline", ())
        if math.isfinite(metrics[name].low)
    ]
    scores = [sample_scores(row) for row in rows]
    plots = [bar_charts({"Results, with 95 % intervals": bars})]
    for name in RANKED:
        if values := [of_sample[name] for of_sample in scores if name in of_sample]:
            plots.append(histogram(f"{metric_name(name).plain} of single samples", values))
    return plots


def _gallery(rows: Sequence[PredictionRow]) -> dict[str, list[tuple[PredictionRow, str]]]:
    """Heading to samples, each with its score as text: the worst, median and best, or the first if none has a score."""
    scored = [(sample_scores(row), row) for row in rows]
    name = next((name for name in RANKED if any(name in scores for scores, _ in scored)), None)
    if name is None:
        return {"Samples": [(row, "") for row in rows[:SHOWN]]}
    ranked = sorted(
        ((scores[name], row["id"], row) for scores, row in scored if name in scores), key=lambda item: item[:2]
    )
    middle = max(0, len(ranked) // 2 - SHOWN // 2)
    plain = metric_name(name).plain
    parts = {"Worst": ranked[:SHOWN], "Median": ranked[middle : middle + SHOWN], "Best": ranked[::-1][:SHOWN]}
    return {
        f"{part} by {plain}": [(row, f"{plain} {value:.2f}") for value, _, row in chosen]
        for part, chosen in parts.items()
    }


def _side_by_side(folders: Mapping[str, Path], count: int) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Pictures of the same prompts and seeds, a column per evaluation (Fig. 4).

    Args:
        folders: Name to folder of each evaluation.
        count: Greatest number of samples, from those that all evaluations have.

    Returns:
        Id, reference caption, and pictures of each sample: label and data URL, empty if there is no picture.
    """
    runs = {
        name: {row["id"]: row for row in read_predictions(folder, *_SHOWN_KEYS)} for name, folder in folders.items()
    }
    first = next(iter(runs))
    shared = [row for id_, row in runs[first].items() if all(id_ in rows for rows in runs.values())]
    samples = []
    for row in [row for row in shared if any(segment["caption"] for segment in row["reference"])][:count]:
        reference = next(segment for segment in row["reference"] if segment["caption"])
        pictures = [("reference", _data(folders[first], reference["image"]))]
        for name, rows in runs.items():
            drawn = (segment["image"] for segment in rows[row["id"]]["generated"] if segment["image"])
            pictures.append((name, _data(folders[name], next(drawn, None))))
        samples.append((row["id"], reference["caption"], pictures))
    return samples


def _data(folder: Path, name: str | None) -> str:
    """A picture's file as a data URL; empty for no picture, and for one that is not there any more."""
    # The names come from a file that may be anybody's.
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"
