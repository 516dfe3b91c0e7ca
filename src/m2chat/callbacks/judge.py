"""A generated world's judge: whether generated pictures show what they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback, flat
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.schema import Prediction
from m2chat.world import find_world


class Judge(MetricCallback):
    """Logs shares of generated pictures, in percent, as the judge reads them from pixels.

    ``all_right``: every attribute that the true caption names is there. ``scene_right``: so is every attribute of
    the true picture. ``omitted_right``: of the attributes that only the context picture shows. In a test also
    ``right_<attribute>`` for each that captions name, and ``all_right_oracle`` of the true pictures.

    Pictures that were due but not drawn are in no share; `CLIPScore` counts them.

    Args:
        world: Name of the generated world that the data come from, a folder under ``m2chat/worlds/``.
    """

    key = "judge"

    def __init__(self, world: str = "shapes") -> None:
        self.world = find_world(world, "Judge: world")

    def protocol(self) -> dict[str, Any]:
        """Largest error at which a picture counts as one of the world."""
        return {"judge_max_error": self.world.max_error}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Verdicts on each prediction's pictures."""
        return [asdict(self.world.judge(targets_of(prediction))) for prediction in predictions]

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """Shares in percent, without those that nothing was asked about."""
        values = {name: flat(rows, name) for name in ("all_right", "scene_right", "omitted_right")}
        if full:
            values["all_right_oracle"] = flat(rows, "oracle")
            for name in sorted({name for row in rows for name in row.values["attributes"]}):
                values[f"right_{name}"] = [right for row in rows for right in row.values["attributes"].get(name, ())]
        return {
            name: estimate(100.0 * np.array(item, np.float64))
            for name, item in values.items()
            if item or name == "all_right"
        }
