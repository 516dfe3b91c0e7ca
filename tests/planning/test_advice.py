"""What would make a run fit."""

from __future__ import annotations

from m2chat.models.blank import blank_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.trainable import set_trainable, trainable_names
from m2chat.planning.advice import Change, advice, changes
from m2chat.planning.step import BatchShape
from m2chat.planning.training import plan_training


def test_changes_are_made_one_on_top_of_the_other(backbone: BackboneConfig) -> None:
    model, _ = blank_m2chat(backbone, M3AdapterConfig(width=48, heads=4))
    set_trainable(model, trainable_names(model, "align"))
    shape = BatchShape(4, 64, 32, 8)
    plan = plan_training(model, "align", shape, 64, 2, None)
    asked: list[tuple[int, bool]] = []

    def peak(batch: int, again: bool) -> float:
        asked.append((batch, again))
        return 1e6 * batch / (1 + again)

    found = changes(model, "align", shape, 2, (plan.whole, plan.sharded), False, False, peak)
    assert asked == [(1, False), (1, True)]
    words = ("feature cache", "data.batch_size 1", "gradient_checkpointing", "shard_frozen")
    assert all(word in change.how for word, change in zip(words, found, strict=True))
    totals = [change.total for change in found]
    assert totals[0] < plan.whole.memory.total and totals[:3] == sorted(totals[:3], reverse=True)


def test_advice_ends_where_it_fits() -> None:
    found = [Change("a", 30e9), Change("b", 20e9), Change("c", 10e9, exists=False)]
    assert advice(found, 24e9) == ["- a: 30.00 GB", "- and b: 20.00 GB, which fits"]
    assert advice(found, 12e9)[-1] == "- and c: 10.00 GB, which fits"
    assert "take a larger card" in advice(found, 5e9)[-1]
