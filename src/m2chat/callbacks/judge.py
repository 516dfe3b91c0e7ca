"""A generated world's judge: whether generated pictures show what they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.base import Gathered, SampleMetric
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
    in_validation = frozenset({"all_right", "scene_right", "omitted_right"})

    def __init__(self, world: str = "shapes") -> None:
        self.world = find_world(world, "Judge: world")
        names = ["all_right", "scene_right", "omitted_right", "all_right_oracle"]
        names += [f"right_{name}" for name in sorted(self.world.attributes)]
        self.hold({name: SampleMetric() for name in names})

    def protocol(self) -> dict[str, Any]:
        """The world, and the largest error at which a picture counts as one of it."""
        return {"world": self.world.name, "judge_max_error": self.world.max_error}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Verdicts on a prediction's pictures."""
        return asdict(self.world.judge(targets_of(prediction)))

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the verdicts, as 0 or 100, to the metrics."""
        fields = {name: values[name] for name in ("all_right", "scene_right", "omitted_right")}
        fields["all_right_oracle"] = values["oracle"]
        fields |= {f"right_{name}": verdicts for name, verdicts in values["attributes"].items()}
        for name, verdicts in fields.items():
            self.metric(name).add([100.0 * right for right in verdicts], prediction.id, prediction.kind)

    def summarise(self, values: Mapping[str, Gathered], full: bool) -> dict[str, Estimate]:
        """Shares in percent, without those of which there was nothing to judge."""
        results = super().summarise(values, full)
        return {name: item for name, item in results.items() if item.n or name == "all_right"}
