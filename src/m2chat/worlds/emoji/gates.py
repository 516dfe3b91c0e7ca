"""What the context picture gives, and what the gate of Eq. 3 does with it, for `m2chat measure --world emoji`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from m2chat.models.config import GateConfig
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.tasks import wish
from m2chat.schema import Picture, Reply, Sample
from m2chat.text.view import view_of
from m2chat.world import Attributes
from m2chat.worlds.emoji.metrics import Case, Eyes, shows
from m2chat.worlds.talks import Findings, Talks, first_picture

SEEDS = range(4)


def measure_context(talks: Talks, eyes: Eyes, samples: Sequence[Sample], findings: Findings) -> None:
    """What only the context picture shows, with that picture and with a blank one.

    Args:
        talks: Replies.
        eyes: Judges.
        samples: Conversations with the data's captions, which leave it out.
        findings: Takes the rows.
    """
    places = [(sample, int(turn)) for sample in samples for turn in sample.meta["omitted"]]
    for name, asked in (("context picture", places), ("blank picture", [(_blank(s), turn) for s, turn in places])):
        rows: dict[str, list[tuple[Picture | None, Callable[[Attributes], bool]]]] = {}
        for (sample, turn), reply in zip(places, talks.reply(asked, image="force"), strict=True):
            scene = Case(sample, turn, reply).scene
            for attribute in sample.meta["omitted"][str(turn)]:
                item = first_picture(reply), partial(shows, attribute, scene[attribute])
                for row in (f"only shown: {name}", f"only shown: {name}: {attribute}"):
                    rows.setdefault(row, []).append(item)
        for row, items in rows.items():
            eyes.add(findings, row, [picture for picture, _ in items], [test for _, test in items])


def _blank(sample: Sample) -> Sample:
    white = [replace(image, pixels=np.full_like(image.pixels, 255)) for image in sample.images]
    return replace(sample, images=tuple(white))


def measure_wishes(talks: Talks, eyes: Eyes, samples: Sequence[Sample], findings: Findings) -> None:
    """Whether four seeds of a wish all have its keywords, and differ in something that it leaves open."""
    for sample in samples:
        outputs = wish(talks.pipe, sample.turns[0].text, SEEDS, steps=talks.steps)
        seen, _ = eyes.seen([np.asarray(output.images[0]) if output.images else None for output in outputs])
        case = Case(sample, 1, Reply((), ()))
        rights = [bool(attributes) and eyes.is_right(case, attributes) for attributes in seen]
        findings.add("wishes: all four seeds have the keywords", [all(rights)])
        open_ = {(attributes.get("style"), attributes.get("tone")) for attributes in seen}
        findings.add("wishes: two of the four differ in style or skin", [len(open_) > 1])


def gate_rows(talks: Talks, eyes: Eyes, cases: Sequence[Case], count: int) -> list[dict[str, Any]]:
    """Eq. 3 by task, and the diversity of four seeds beside it; then the same replies at gates that are given.

    Args:
        talks: Its `gates` are those of the cases.
        eyes: Judge what is kept.
        cases: Replies with pictures; those without a context picture have no gate and are left out.
        count: Replies of each task that are drawn with four seeds.
    """
    seen = [case for case in cases if case.drawn is not None and view_of(case.sample, case.turn).context is not None]
    tasks = {name: [c for c in seen if c.step == name] for name in ("edit", "similar", "story")}
    tasks = {"dialogue": [case for case in seen if case.step not in tasks]} | tasks
    rows: list[dict[str, Any]] = []
    for name, of_task in tasks.items():
        if of_task:
            gates, cosines = np.array([talks.gates[case.sample.id, case.turn][0] for case in of_task]).T
            numbers = {
                "cosine": cosines.mean(),
                "its SD": cosines.std(),
                "gate": gates.mean(),
                "gate's SD": gates.std(),
            }
            few = of_task[:count]
            drawn = {"drawn": len(few), **_four_seeds(talks, eyes, few)} if few else {}
            rows.append(
                {"Eq. 3 by task": name, "n": len(of_task)} | {k: round(float(v), 3) for k, v in numbers.items()} | drawn
            )
    if few := [*tasks["edit"][:count], *tasks["similar"][:count]]:
        for value in (0.0, 0.5, 1.0):
            with _gate_at(talks.pipe, value):
                rows.append(
                    {
                        "edits and similar pictures at the gate": value,
                        "drawn": len(few),
                        **_four_seeds(talks, eyes, few),
                    }
                )
    return rows


def _four_seeds(talks: Talks, eyes: Eyes, cases: Sequence[Case]) -> dict[str, float]:
    """The replies' pictures drawn with four seeds: how far they differ, how many are right, how many keep the style."""
    asked = [(case.sample.until(case.turn), case.drawn) for case in cases for _ in SEEDS]
    pictures = talks.drawn_of(asked, "reply", [*SEEDS] * len(cases))  # type: ignore[arg-type]
    pairs = list(itertools.combinations(SEEDS, 2))
    spread = []
    for start in range(0, len(pictures), len(SEEDS)):
        four = np.stack(pictures[start : start + len(SEEDS)]).astype(np.float32)
        spread.append(np.mean([np.sqrt(np.square(four[i] - four[j]).mean()) for i, j in pairs]))
    seen, _ = eyes.seen(pictures)
    of = [case for case in cases for _ in SEEDS]
    right = [bool(s) and eyes.is_right(case, s) for case, s in zip(of, seen, strict=True)]
    kept = [s.get("style") == case.before["style"] for case, s in zip(of, seen, strict=True)]
    return {
        "distance of seeds": round(float(np.mean(spread)), 1),
        "right %": round(100 * float(np.mean(right)), 1),
        "style kept %": round(100 * float(np.mean(kept)), 1),
    }


@contextmanager
def _gate_at(pipe: M2ChatPipeline, value: float) -> Iterator[None]:
    """The gate of Eq. 3 at a given value."""
    gate = pipe.model.m3adapter.gate
    usual, gate.config = gate.config, GateConfig("constant", value)
    try:
        yield
    finally:
        gate.config = usual
