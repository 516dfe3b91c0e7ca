"""Tables over rows and seeds: the paper's tables, the ablations, and every metric of the seeds.

All read ``RESULTS/<row>/seed_<n>/<evaluation>.json``, as ``m2chat eval rows`` keeps them. What was not run reads so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.evaluation.compare import compare_pictures
from m2chat.evaluation.markup import Cells, Table
from m2chat.evaluation.names import grouped, metric_name, shown_value
from m2chat.evaluation.paper import TABLE_1, TABLE_2, TABLE_3, paper_cell
from m2chat.evaluation.predictions import PREDICTIONS
from m2chat.evaluation.results import newest_results, read_results
from m2chat.evaluation.rows import TABLES, Column, Group, RowResults, RunFolders, TableRow, read_row_results
from m2chat.evaluation.statistics import Estimate

NOT_RUN = "not run"
_TABLE_1: tuple[Column, ...] = (("eval_coco", "clip_score"), ("eval_cc3m", "fid_micro"), ("eval_cc3m", "clip_score"))
_TABLE_2: tuple[Column, ...] = tuple(
    ("eval_mmdialog", name) for name in ("bleu_1", "bleu_2", "rouge_l", "inter_rel")
)  # fmt: skip
_STORIES_AND_EDITS: tuple[Column, ...] = (
    ("eval_story", "story_consistency"), ("eval_story", "clip_score"), ("eval_edit", "edit_direction"),
    ("eval_edit", "clip_score"),
)  # fmt: skip
_ABLATIONS: tuple[Column, ...] = (
    ("eval_cc3m", "clip_score"), ("eval_cc3m", "fid_micro"), ("eval_mmdialog", "bleu_1"),
    ("eval_mmdialog", "inter_rel"), ("eval_mmdialog", "clip_score"), ("eval_edit", "edit_direction"),
    ("eval_edit", "all_right"), ("eval_context", "omitted_right"),
)  # fmt: skip
_PLOTTED: tuple[Column, ...] = (
    ("eval_cc3m", "clip_score"), ("eval_mmdialog", "inter_rel"), ("eval_mmdialog", "bleu_1"),
)  # fmt: skip
_TASKS = ("caption", "dialogue", "story", "edit")
_SHARED = ("stage", "dataset", "gate_mode", "layout", "given", "context", "conditioner", "steps", "guidance")
"""Entries of the protocol that must agree among the seeds of a mean."""


def paper_tables(rows: Sequence[TableRow], results: Path, logs: Path | None = None) -> list[Table]:
    """Tables 1 to 3, stories and edits, the ablations, and the tasks that each row was trained in.

    Args:
        rows: All rows.
        results: Folder with the results of each row.
        logs: Folder of runs, whose newest evaluation is added to Tables 1 and 2; None for no such row.
    """
    rows = [row for row in rows if row.groups.keys() & set(TABLES)]
    measured = {row.name: read_row_results(results / row.name) for row in rows}
    main = _of_group(rows, "main")
    shown = list(main)
    if logs is not None and (newest := _newest_run(logs)) is not None:
        shown.append(newest[0])
        measured[newest[0].name] = newest[1]
    return [
        Table("Table 1: text to image", _filled(_that_run(shown, _TABLE_1), measured, _TABLE_1, True)),
        Table("Table 2: multimodal dialogue", _filled(_that_run(shown, _TABLE_2), measured, _TABLE_2, True)),
        Table("Table 3: cost", _costs(main, measured)),
        Table("Stories and edits", _filled(_that_run(shown, _STORIES_AND_EDITS), measured, _STORIES_AND_EDITS, False)),
        Table("Ablations", _filled(_of_group(rows, "ablation"), measured, _ABLATIONS, False)),
        Table("Trained or zero-shot", _tasks(rows, measured)),
    ]


def plotted(rows: Sequence[TableRow], results: Path) -> dict[str, list[tuple[str, Estimate]]]:
    """The metrics of `_PLOTTED` for a plot: title to the rows' titles and values, NaN where a row was not run."""
    charts = {}
    for column in _PLOTTED:
        title = f"{column[0].removeprefix('eval_')}: {metric_name(column[1]).plain} (micro scale)"
        charts[title] = [
            (row.title, read_row_results(results / row.name).value(column) or Estimate(math.nan, 0))
            for row in _that_run(_of_group(rows, "main"), (column,))
        ]
    return charts


def _of_group(rows: Iterable[TableRow], group: Group) -> list[TableRow]:
    return [row for row in rows if group in row.groups]


def _that_run(rows: Iterable[TableRow], columns: Iterable[Column]) -> list[TableRow]:
    """The rows that run one of the columns' evaluations."""
    names = {evaluation for evaluation, _ in columns}
    return [row for row in rows if names & set(row.evaluations())]


def _newest_run(logs: Path) -> tuple[TableRow, RowResults] | None:
    """The newest evaluation of the logs as a row of every table; None if there is none."""
    if not any(logs.rglob("results.json")):
        return None
    path = newest_results(logs)
    metrics, protocol = read_results(path)
    name = f"eval_{protocol.get('dataset')}"
    evaluations = tuple(dict.fromkeys(name for name, _ in (*_TABLE_1, *_TABLE_2, *_STORIES_AND_EDITS)))
    row = TableRow("", None, f"newest local run ({path.parent.as_posix()})", {"main": evaluations})
    return row, RowResults({name: {0: metrics}}, {name: {0: protocol}})


def _filled(
    rows: Sequence[TableRow], measured: Mapping[str, RowResults], columns: Sequence[Column], paper: bool
) -> Cells:
    """A table of metrics.

    Args:
        rows: Rows to show.
        measured: Row name to its results.
        columns: Metrics to show.
        paper: Whether the paper's numbers are added in columns of their own, and its rows that are not among ours.
    """
    header = ["model"]
    for evaluation, metric in columns:
        header.append(f"{evaluation.removeprefix('eval_')} {metric_name(metric).plain}")
        header += ["paper (other weights, other data)"] if paper else []
    table: Cells = [tuple(header)]
    for row in rows:
        cells = [row.title]
        for column in columns:
            cells.append(_value(measured[row.name].value(column)))
            cells += [_paper(column, row.paper)] if paper else []
        table.append(tuple(cells))
    if paper:
        models = TABLE_2 if columns == _TABLE_2 else [model for models in TABLE_1.values() for model in models]
        ours = {row.paper for row in rows}
        for model in dict.fromkeys(model for model in models if model not in ours):
            table.append((model, *(text for column in columns for text in ("", _paper(column, model)))))
    return table


def _paper(column: Column, model: str) -> str:
    return paper_cell(column[0].removeprefix("eval_"), column[1], model)


def _value(item: Estimate | None) -> str:
    """``50.12 ± 1.30 (3)``: mean, half of its 95 % interval over seeds, number of seeds.

    Of one seed the interval, in brackets, is that over the samples.
    """
    if item is None:
        return NOT_RUN
    if math.isnan(item.value):
        return "undefined"
    if item.n is not None and item.n > 1:
        return f"{item.value:.2f} ± {(item.high - item.low) / 2:.2f} ({item.n})"
    interval = "" if math.isnan(item.low) else f" [{item.low:.2f}, {item.high:.2f}]"
    return f"{item.value:.2f}{interval} (1)"


def _costs(rows: Sequence[TableRow], measured: Mapping[str, RowResults]) -> Cells:
    """Trainable parameters, data and time as the runs recorded them, and the paper's below."""
    table: Cells = [("model", "trained parameters", "samples seen", "time", "processes' device")]
    for row in rows:
        protocol = measured[row.name].any_protocol()
        if not protocol:
            table.append((row.title, NOT_RUN, "", "", ""))
            continue
        number, costs = protocol.get("trainable_parameters"), protocol.get("costs") or []
        hours = sum(item["seconds"] * item["processes"] for item in costs) / 3600
        without_costs = "0" if number == 0 else "not recorded"
        table.append(
            (
                row.title,
                "not recorded" if number is None else f"{number:,}",
                f"{sum(item['samples'] for item in costs):,}" if costs else without_costs,
                f"{hours:.2f} h" if costs else without_costs,
                ", ".join(sorted({item["device"] for item in costs})),
            )
        )
    return [*table, *((f"paper: {model}", *(f"paper: {text}" for text in cost), "") for model, cost in TABLE_3.items())]


def _tasks(rows: Sequence[TableRow], measured: Mapping[str, RowResults]) -> Cells:
    """The tasks that each row was trained in."""
    table: Cells = [("model", *_TASKS)]
    for row in rows:
        tasks = measured[row.name].any_protocol().get("tasks") or {}
        table.append((row.title, *(str(tasks.get(task, NOT_RUN)) for task in _TASKS)))
    return table


def every_metric(
    rows: Sequence[TableRow], results: Path, folders: RunFolders, seeds: Sequence[int] | None = None
) -> list[Table]:
    """Mean and spread over the seeds of every metric of the evaluations that the group ``seeds`` takes.

    Behind them, where runs still hold their pictures, come the comparisons with another row, picture by picture.

    Args:
        rows: All rows.
        results: Folder with the results of each row.
        folders: Folders of the runs.
        seeds: Training seeds; None means each row's default ones.

    Raises:
        UserError: If the seeds of an evaluation were not measured in the same way.
    """
    by_name = {row.name: row for row in rows}
    tables, comparisons = [], []
    for row in _of_group(rows, "seeds"):
        chosen = row.seeds if seeds is None else seeds
        measured = read_row_results(results / row.name)
        for name in row.evaluations(["seeds"]):
            metrics, protocols = measured.metrics.get(name, {}), measured.protocols.get(name, {})
            protocol = _agreed(row.label(name), {seed: protocols[seed] for seed in chosen if seed in protocols})
            values: dict[str, dict[int, float]] = {}
            for seed in chosen:
                for metric, item in metrics.get(seed, {}).items():
                    if math.isfinite(item.value):
                        values.setdefault(metric, {})[seed] = item.value
            settings = ", ".join(f"{key} {value}" for key, value in protocol.items())
            tables.append(Table(row.label(name), _spread(values, str(protocol.get("dataset", ""))), settings))
            if row.compared_with and (compared := _compared(by_name[row.compared_with], row, name, folders, chosen)):
                comparisons.append(compared)
    return [table for part in (tables, comparisons) for table in sorted(part, key=lambda table: table.title)]


def _agreed(label: str, protocols: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The entries `_SHARED` of protocols.

    Raises:
        UserError: If they differ between seeds: their mean would mean nothing.
    """
    agreed: dict[str, Any] = {}
    for seed, protocol in protocols.items():
        entries = {key: protocol[key] for key in _SHARED if protocol.get(key) is not None}
        agreed = agreed or entries
        if entries != agreed:
            key = next(key for key in _SHARED if entries.get(key) != agreed.get(key))
            raise UserError(
                f"{label}: {key} is {entries.get(key)!r} for seed {seed} and {agreed.get(key)!r} for another; "
                "remove the results that do not belong together"
            )
    return agreed


def _spread(values: Mapping[str, Mapping[int, float]], dataset: str = "") -> Cells:
    """Mean, standard deviation (n - 1) and range of each metric: results, then controls, then counts.

    Args:
        values: Metric to seed to value.
        dataset: Data set whose numbers of the paper are shown.
    """
    cells: Cells = [("metric", "mean", "std", "min ... max", "seeds", "paper (7B, real data)", "key")]
    for metric in (name for names in grouped(values).values() for name in names):
        by_seed = values[metric]
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        cells.append(
            (
                metric_name(metric).plain,
                f"{statistics.fmean(ordered):.2f}",
                f"{statistics.stdev(ordered):.2f}" if len(ordered) > 1 else "-",
                f"{shown_value(metric, min(ordered))} ... {shown_value(metric, max(ordered))}",
                " ".join(map(str, sorted(by_seed))),
                paper_cell(dataset, metric),
                metric,
            )
        )
    return cells if values else [*cells, (NOT_RUN, "", "", "", "", "", "")]


def _compared(first: TableRow, second: TableRow, name: str, folders: RunFolders, seeds: Iterable[int]) -> Table | None:
    """Two rows' pictures of the same samples, judged one by one; None if no seed has both."""
    values: dict[str, dict[int, float]] = {}
    for seed in seeds:
        a, b = (folders.evaluation(row, seed, name) for row in (first, second))
        if (a / PREDICTIONS).is_file() and (b / PREDICTIONS).is_file():
            for metric, item in compare_pictures(a, b).items():
                values.setdefault(metric, {})[seed] = item.value
    a_label, b_label = first.label(name), second.label(name)
    text = f"`{a_label}` (a) and `{b_label}` (b), judged picture by picture; shares in percent, differences in points."
    return Table(f"{a_label} against {b_label}", _spread(values), text) if values else None
