"""A few failures of each kind; ``make chaos`` runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("fastapi", reason="needs m2chat[serve]")

from chaos.figures import Figures, Kind, table
from chaos.kinds import KINDS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.quick])
def test_some_of_each_kind(name: str, tmp_path: Path) -> None:
    found = KINDS[name].run(KINDS[name].quick, tmp_path, 0)
    assert found.tried >= KINDS[name].quick and found.wrong == []


def test_the_table_has_a_row_for_each_kind() -> None:
    kinds = {**KINDS, "new": Kind("a new kind", "things", 1, 0, lambda *_: Figures())}
    rows = table(kinds).splitlines()[2:]
    assert len(rows) == len(kinds) and rows[-1] == "| a new kind | not yet run | things | | |"
