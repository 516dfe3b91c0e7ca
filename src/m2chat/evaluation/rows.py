"""Rows of the results tables: their descriptions in ``configs/``, where their runs lie, and what was measured.

A row is one YAML file in ``configs/rows/`` or ``configs/ablations/``. Its section ``row`` is a `TableRow`; its other
sections are settings of ``lightning``, given behind a training or an evaluation with a second ``--config``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from m2chat.errors import UserError
from m2chat.evaluation.results import RESULTS, read_results
from m2chat.evaluation.statistics import Estimate, mean_interval

Group = Literal["main", "ablation", "seeds"]
"""``main``: Tables 1 to 3; ``ablation``: the table of ablations; ``seeds``: the tables of every metric."""
GROUPS: tuple[Group, ...] = ("main", "ablation", "seeds")
TABLES: tuple[Group, ...] = ("main", "ablation")
"""Groups of the paper's tables and the ablations, which are run by default."""

Column = tuple[str, str]
"""Evaluation and metric."""


@validated_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TableRow:
    """A row of the results tables.

    Args:
        name: Name of its file, without the ending, and of the folders of its runs and results.
        config: Its file, given to `lightning` with its own trainings and all its evaluations. None for a row without
            settings, which is M²Chat as the configurations of trainings and evaluations have it.
        title: Title in the tables.
        groups: Group to the evaluations that it takes of this row: names of files in ``configs/``.
        shares: Trainings without the row's settings, in order, whose weights all rows share: names of files in
            ``configs/``.
        trains: Trainings with the row's settings, in order, the first from the weights of the last shared one.
        seeds: Training seeds that are run by default.
        paper: Name of the row in the paper's tables; empty if they do not have it.
        compared_with: Name of the row whose pictures of the same samples are compared with this row's in the tables
            of every metric; empty for none.
        order: Rows stand in increasing order, those of equal order by name.
    """

    name: str
    config: Path | None
    title: str
    groups: dict[Group, tuple[str, ...]]
    shares: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    paper: str = ""
    compared_with: str = ""
    order: int = 1000

    def evaluations(self, groups: Iterable[Group] = GROUPS) -> tuple[str, ...]:
        """The evaluations that groups take of this row, each once."""
        return tuple(dict.fromkeys(name for group in groups for name in self.groups.get(group, ())))

    def label(self, evaluation: str) -> str:
        """``eval_cc3m`` of the row without settings; of others with their name behind: ``eval_cc3m_decoder``."""
        return evaluation if self.config is None else f"{evaluation}_{self.name}"


def read_rows(configs: Path) -> list[TableRow]:
    """The rows that a folder of configurations describes, in the order of the tables.

    Args:
        configs: Folder with ``rows/`` and ``ablations/``.

    Raises:
        UserError: If there are none, or a file has no valid section ``row``.
    """
    paths = sorted([*configs.glob("rows/*.yaml"), *configs.glob("ablations/*.yaml")])
    if not paths:
        raise UserError(
            f"--configs {configs}: no rows/*.yaml in it; run in the root of the repository, or name configs"
        )
    rows = [_read_row(path) for path in paths]
    names = [row.name for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--configs {configs}: two files describe the row {', '.join(sorted(twice))}; rename one")
    for row in rows:
        if row.compared_with and row.compared_with not in names:
            raise UserError(f"row {row.name}: compared_with={row.compared_with!r}; choose from {', '.join(names)}")
    return sorted(rows, key=lambda row: (row.order, row.name))


def _read_row(path: Path) -> TableRow:
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    section = settings.pop("row", None) if isinstance(settings, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path} has no section `row`; docs/evaluation.md shows one")
    try:
        # The name of a file is the name of its row, whatever the section holds.
        described = section | {"name": path.stem, "config": path if settings else None}
        return TypeAdapter(TableRow).validate_python(described)
    except ValidationError as error:
        faults = "; ".join(f"row.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"{path}: {faults}") from error


def choose(rows: Sequence[TableRow], names: Collection[str], groups: Collection[Group]) -> list[TableRow]:
    """The rows of some names, or of some groups if there are no names, in the order of the tables.

    Raises:
        UserError: If there is no such row or group.
    """
    if wrong := [group for group in groups if group not in GROUPS]:
        raise UserError(f"--group {', '.join(wrong)}: choose from {', '.join(GROUPS)}")
    if unknown := set(names) - {row.name for row in rows}:
        raise UserError(f"no row {', '.join(sorted(unknown))}; choose from {', '.join(row.name for row in rows)}")
    return [row for row in rows if (row.name in names if names else row.groups.keys() & set(groups))]


@dataclass(frozen=True)
class RunFolders:
    """Where the trainings and evaluations of rows are logged.

    Args:
        shared: Folder of ``seed_<n>/<training>``, the trainings that rows share.
        logs: Folder of ``seed_<n>/<row>/<training or evaluation>``.
    """

    shared: Path
    logs: Path

    def seed(self, seed: int) -> Path:
        """Folder of the shared trainings of a seed."""
        return self.shared / f"seed_{seed}"

    def row(self, row: TableRow, seed: int) -> Path:
        """Folder of a row's runs of a seed."""
        return self.logs / f"seed_{seed}" / row.name

    def evaluation(self, row: TableRow, seed: int, name: str) -> Path:
        """Folder of an evaluation, whether it was run or not.

        Earlier versions kept those of the group ``seeds`` beside the shared trainings, with the row's name behind:
        taken where there is no newer one.
        """
        folder, earlier = self.row(row, seed) / name, self.seed(seed) / row.label(name)
        return earlier if (earlier / RESULTS).is_file() and not (folder / RESULTS).is_file() else folder


@dataclass(frozen=True)
class RowResults:
    """What was measured of a row.

    Args:
        metrics: Evaluation to seed to metric name to value.
        protocols: Evaluation to seed to the protocol of ``results.json``.
    """

    metrics: Mapping[str, Mapping[int, Mapping[str, Estimate]]]
    protocols: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def value(self, column: Column) -> Estimate | None:
        """A metric over the seeds, with the 95 % interval of their mean; of one seed, with that over its samples."""
        evaluation, metric = column
        values = [metrics[metric] for metrics in self.metrics.get(evaluation, {}).values() if metric in metrics]
        values = [item for item in values if math.isfinite(item.value)]
        if len(values) == 1:
            return Estimate(values[0].value, 1, values[0].low, values[0].high)
        return mean_interval([item.value for item in values]) if values else None

    def any_protocol(self) -> Mapping[str, Any]:
        """Protocol of one of its evaluations, which agree in what the model is; empty if nothing was run."""
        return next((protocol for seeds in self.protocols.values() for protocol in seeds.values()), {})


def read_row_results(folder: Path) -> RowResults:
    """Reads ``seed_<n>/<evaluation>.json`` of a row, as `m2chat eval rows` keeps them; none if there is no folder."""
    metrics: dict[str, dict[int, Mapping[str, Estimate]]] = {}
    protocols: dict[str, dict[int, Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("seed_*/*.json")):
        seed = int(path.parent.name.removeprefix("seed_"))
        metrics.setdefault(path.stem, {})[seed], protocols.setdefault(path.stem, {})[seed] = read_results(path)
    return RowResults(metrics, protocols)
