"""Training gives the numbers that it gave before."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

GOLDEN: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make.py"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", [1, 2])
def test_the_first_steps_of_the_micro_stage(stage: int) -> None:
    expected = GOLDEN["read"](stage)
    assert len(expected) == GOLDEN["STEPS"]
    found = GOLDEN["train"](stage)
    assert len(found) == len(expected)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        # Losses are written with six decimals.
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), f"step {step}; if this is meant, `make golden`"
