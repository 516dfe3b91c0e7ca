"""The paper's tables from results files: Table 1, 2 and 3, the ablations, and which task was trained.

Reads ``RESULTS/<row>/seed_<n>/<evaluation>.json``, as ``m2chat eval rows`` keeps them. A row that nobody has run
says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.evaluation.charts import Bar, bars
from m2chat.evaluation.paper import TABLE_1, TABLE_2, TABLE_3
from m2chat.evaluation.report import NOTE, aligned, newest
from m2chat.evaluation.results import read_results
from m2chat.evaluation.statistics import Estimate, mean_interval

NOT_RUN = "not run"
_LABELS = {
    "clip_score": "CLIP", "fid_micro": "fid_micro", "fid": "FID", "bleu_1": "BLEU-1", "bleu_2": "BLEU-2",
    "rouge_l": "ROUGE-L", "inter_rel": "InterRel", "all_right": "right, %", "omitted_right": "hidden right, %",
    "edit_direction": "direction", "story_consistency": "consistency",
}  # fmt: skip
_TASKS = {
    "eval_coco": "caption", "eval_cc3m": "caption", "eval_mmdialog": "dialogue", "eval_story": "story",
    "eval_edit": "edit",
}  # fmt: skip

Column = tuple[str, str]
"""Evaluation and metric."""
TABLE_1_COLUMNS: tuple[Column, ...] = (
    ("eval_coco", "clip_score"), ("eval_cc3m", "fid_micro"), ("eval_cc3m", "clip_score"),
)  # fmt: skip
TABLE_2_COLUMNS: tuple[Column, ...] = tuple(
    ("eval_mmdialog", name) for name in ("bleu_1", "bleu_2", "rouge_l", "inter_rel")
)
ABLATION_COLUMNS: tuple[Column, ...] = (
    ("eval_cc3m", "clip_score"), ("eval_cc3m", "fid_micro"), ("eval_mmdialog", "bleu_1"),
    ("eval_mmdialog", "inter_rel"), ("eval_mmdialog", "clip_score"), ("eval_edit", "edit_direction"),
    ("eval_edit", "all_right"), ("eval_context", "omitted_right"),
)  # fmt: skip
TASK_COLUMNS: tuple[Column, ...] = (
    ("eval_story", "story_consistency"), ("eval_story", "clip_score"), ("eval_edit", "edit_direction"),
    ("eval_edit", "clip_score"),
)  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """A row to fill.

    Args:
        name: Of its folder.
        title: In tables.
        group: ``main`` or ``ablation``.
        paper: Name of the row in the paper's tables; empty if it is not in them.
    """

    name: str
    title: str
    group: str
    paper: str


@dataclass(frozen=True)
class Found:
    """What was measured of a row.

    Args:
        metrics: Evaluation to seed to metrics.
        protocols: The same for protocols.
    """

    metrics: Mapping[str, Mapping[int, Mapping[str, Estimate]]]
    protocols: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def value(self, column: Column) -> Estimate | None:
        """A metric over the seeds, with the interval of their mean; over the samples, if there is one seed."""
        evaluation, metric = column
        seeds = [item[metric] for item in self.metrics.get(evaluation, {}).values() if metric in item]
        found = [item for item in seeds if math.isfinite(item.value)]
        if len(found) == 1:
            return Estimate(found[0].value, 1, found[0].low, found[0].high)
        return mean_interval([item.value for item in found]) if found else None

    def any_protocol(self) -> Mapping[str, Any]:
        """Of one of its evaluations; they agree in what the model is."""
        return next((own for seeds in self.protocols.values() for own in seeds.values()), {})


def read_row(folder: Path) -> Found:
    """Everything that was kept of a row; nothing if the folder is not there."""
    metrics: dict[str, dict[int, Mapping[str, Estimate]]] = {}
    protocols: dict[str, dict[int, Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("seed_*/*.json")):
        seed = int(path.parent.name.removeprefix("seed_"))
        own = read_results(path)
        metrics.setdefault(path.stem, {})[seed], protocols.setdefault(path.stem, {})[seed] = own
    return Found(metrics, protocols)


def cell(item: Estimate | None) -> str:
    """``50.12 ± 1.30 (3)``: mean, half the 95 % interval of the mean over seeds, and their number.

    Of one seed the interval, in brackets, is that over the samples.
    """
    if item is None:
        return NOT_RUN
    if item.n is not None and item.n > 1:
        return f"{item.value:.2f} ± {(item.high - item.low) / 2:.2f} ({item.n})"
    interval = "" if math.isnan(item.low) else f" [{item.low:.2f}, {item.high:.2f}]"
    return f"{item.value:.2f}{interval} (1)"


def _paper(name: str, column: Column) -> str:
    evaluation, metric = column
    data = evaluation.removeprefix("eval_")
    source = TABLE_2 if data == "mmdialog" else TABLE_1.get(data, {})
    value = source.get(name, {}).get("fid" if metric == "fid_micro" else metric)
    return "" if value is None else f"paper: {value:.2f}"


Cells = list[tuple[str, ...]]
"""A table, its header first."""


def filled(rows: Sequence[TableRow], found: Mapping[str, Found], columns: Sequence[Column], paper: bool) -> Cells:
    """A table of metrics, the paper's numbers in columns of their own.

    Args:
        rows: To show.
        found: What was measured of each.
        columns: To show.
        paper: Whether to add the paper's numbers, and its rows that are not ours.
    """
    header = ["model"]
    for evaluation, metric in columns:
        header.append(f"{evaluation.removeprefix('eval_')} {_LABELS[metric]}")
        header += ["paper (other weights, other data)"] if paper else []
    table: Cells = [tuple(header)]
    for row in rows:
        cells = [row.title]
        for column in columns:
            cells.append(cell(found[row.name].value(column)))
            cells += [_paper(row.paper, column)] if paper else []
        table.append(tuple(cells))
    if paper:
        evaluations = {evaluation for evaluation, _ in columns}
        known = TABLE_2 if evaluations == {"eval_mmdialog"} else {n: {} for t in TABLE_1.values() for n in t}
        ours = {row.paper for row in rows}
        for name in (name for name in known if name not in ours):
            table.append((name, *(text for column in columns for text in ("", _paper(name, column)))))
    return table


def table_3(rows: Sequence[TableRow], found: Mapping[str, Found]) -> Cells:
    """Trainable parameters, data and time, all counted by the runs themselves; the paper's below, labelled so."""
    table: Cells = [("model", "trained parameters", "samples seen", "time", "processes' device")]
    for row in rows:
        protocol = found[row.name].any_protocol()
        if not protocol:
            table.append((row.title, NOT_RUN, "", "", ""))
            continue
        number, costs = protocol.get("trainable_parameters"), protocol.get("costs") or []
        hours = sum(item["seconds"] * item["processes"] for item in costs) / 3600
        table.append(
            (
                row.title,
                "not recorded" if number is None else f"{number:,}",
                f"{sum(item['samples'] for item in costs):,}" if costs else "0" if number == 0 else "not recorded",
                f"{hours:.2f} h" if costs else "0" if number == 0 else "not recorded",
                ", ".join(sorted({item["device"] for item in costs})),
            )
        )
    return [*table, *((f"paper: {name}", *(f"paper: {text}" for text in own), "") for name, own in TABLE_3.items())]


def tasks_table(rows: Sequence[TableRow], found: Mapping[str, Found]) -> Cells:
    """Which task each row was trained in."""
    kinds = tuple(dict.fromkeys(_TASKS.values()))
    table: Cells = [("model", *kinds)]
    for row in rows:
        tasks = found[row.name].any_protocol().get("tasks") or {}
        table.append((row.title, *(str(tasks.get(kind, NOT_RUN)) for kind in kinds)))
    return table


def all_tables(rows: Sequence[TableRow], results: Path, logs: Path | None = None) -> dict[str, Cells]:
    """Every table by its title.

    Args:
        rows: To show.
        results: Holds a folder a row.
        logs: Where runs are logged; the newest evaluation there is added to Tables 1 and 2.
    """
    found = {row.name: read_row(results / row.name) for row in rows}
    main = [row for row in rows if row.group == "main"]
    local = _newest(logs) if logs is not None else None
    if local is not None:
        found[""] = local[1]
        main = [*main, TableRow("", local[0], "main", "")]
    return {
        "Table 1: text to image": filled(_that_have(main, "table1"), found, TABLE_1_COLUMNS, True),
        "Table 2: multimodal dialogue": filled(_that_have(main, "table2"), found, TABLE_2_COLUMNS, True),
        "Table 3: cost": table_3([row for row in main if row.name], found),
        "Stories and edits": filled(_that_have(main, "tasks"), found, TASK_COLUMNS, False),
        "Ablations": filled([r for r in rows if r.group == "ablation" or r.name in ("stage1", "m3ft")], found,
                            ABLATION_COLUMNS, False),
        "Trained or zero-shot": tasks_table(rows, found),
    }  # fmt: skip


def _that_have(rows: Iterable[TableRow], table: str) -> list[TableRow]:
    """The main rows that a table of the paper has."""
    without = {"table1": {"vlm_sd"}, "table2": {"sd15", "sdxl"}, "tasks": {"sd15", "sdxl", "vlm_sd"}}[table]
    return [row for row in rows if row.name not in without]


def _newest(logs: Path) -> tuple[str, Found] | None:
    """The newest evaluation of the logs, as a row."""
    if not any(logs.rglob("results.json")):
        return None
    path = newest(logs)
    metrics, protocol = read_results(path)
    name = f"eval_{protocol.get('dataset')}"
    return f"newest local run ({path.parent.as_posix()})", Found({name: {0: metrics}}, {name: {0: protocol}})


def markdown(tables: Mapping[str, Cells]) -> str:
    """All tables as Markdown."""
    lines = [
        "Written by `make tables` from the files in `docs/results/`, which `make ablations` makes; edit nothing here.",
        "Mean ± half of the 95 % interval of the mean over training seeds (their number); of one seed, the interval is "
        "over samples.",
        NOTE,
    ]
    for title, cells in tables.items():
        lines += ["", f"### {title}", "", aligned(cells)]
    return "\n".join(lines) + "\n"


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "φ": r"$\phi$", "²": "$^2$", "³": "$^3$"}


def latex(tables: Mapping[str, Cells]) -> str:
    """All tables as LaTeX, for the package ``booktabs``."""

    def tex(text: str) -> str:
        return "".join(_TEX.get(letter, letter) for letter in text)

    lines = ["% Written by `make tables`."]
    for title, (header, *rows) in tables.items():
        lines += [r"\begin{table}\centering", rf"\caption{{{tex(title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(tex, row)) + r" \\" for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def plots(rows: Sequence[TableRow], results: Path) -> str:
    """InterRel and BLEU of Table 2 and CLIP of Table 1 with their intervals, as one SVG."""
    found = {row.name: read_row(results / row.name) for row in rows}
    charts = []
    for table, column in (("table1", ("eval_cc3m", "clip_score")), ("table2", ("eval_mmdialog", "inter_rel")),
                          ("table2", ("eval_mmdialog", "bleu_1"))):  # fmt: skip
        items = []
        for row in _that_have([row for row in rows if row.group == "main"], table):
            value = found[row.name].value(column) or Estimate(math.nan, 0)
            items.append(Bar(row.title, value.value, value.low, value.high))
        charts.append(bars(f"{column[0].removeprefix('eval_')}: {_LABELS[column[1]]} (micro scale)", items))
    heights = [int(chart.partition('height="')[2].partition('"')[0]) for chart in charts]
    parts = [f'<g transform="translate(0 {sum(heights[:index])})">{chart}</g>' for index, chart in enumerate(charts)]
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="650" height="{sum(heights)}">{"".join(parts)}</svg>\n'
