"""Useful work of a step, for the share of the GPU's peak."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from m2chat.planning.step import BatchShape, measure_step
from m2chat.training.useful_work import UsefulWork


@pytest.fixture(scope="module")
def module(micro: Any) -> Any:
    made = micro.module("align")
    made.configure_model()
    return made


def batch(count: int, cached: bool = False) -> Any:
    latents = SimpleNamespace(shape=(count, 8, 8, 8))
    features = SimpleNamespace(latents=latents) if cached else None
    pixels = SimpleNamespace(shape=(count, 3, 32, 32))
    return type("Shapes", (), {"__len__": lambda self: count, "features": features, "target_pixels": pixels})()


def test_it_is_that_of_the_plan_at_any_length(module: Any) -> None:
    work = UsefulWork(module)
    measured = measure_step(module.model.to("meta"), "align", BatchShape(3, 120, 32, 8)).flops
    module.model = None
    module.configure_model()
    assert work.of(batch(3), 120.0) == pytest.approx(measured, rel=0.04)  # attention grows faster than evenly
    assert work.of(batch(3), 60.0) < work.of(batch(3), 120.0)


def test_what_is_cached_or_not_drawn_is_not_credited(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = UsefulWork(module)
    whole, kept = work.of(batch(4), 100.0), work.of(batch(4, cached=True), 100.0)
    assert 0 < kept < 0.8 * whole
    monkeypatch.setattr(module, "ddpm_samples", 1)
    few = work.of(batch(4, cached=True), 100.0)
    monkeypatch.setattr(module, "ddpm_draws", 4)
    assert few < 0.7 * kept and work.of(batch(4, cached=True), 100.0) == pytest.approx(kept)
