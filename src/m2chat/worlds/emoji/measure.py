"""How well a pipeline converses in the emoji world, over held-out conversations: `m2chat measure --world emoji`."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from m2chat.errors import UserError
from m2chat.pipeline import M2ChatPipeline
from m2chat.worlds.emoji.conversations import ConversationMaker
from m2chat.worlds.emoji.gates import gate_rows, measure_context, measure_wishes
from m2chat.worlds.emoji.judge import world_judge
from m2chat.worlds.emoji.metrics import (
    Case,
    Eyes,
    measure_captions,
    measure_pictures,
    measure_replies,
    measure_stories,
    shows,
)
from m2chat.worlds.emoji.scenes import SIZE
from m2chat.worlds.talks import Findings, Talks

MIX = {
    "instruct": 0.15, "wish": 0.12, "smalltalk": 0.08, "unknown": 0.08, "ask": 0.12, "similar": 0.08, "edit": 0.13,
    "dialogue": 0.12, "mixed": 0.06, "story": 0.06,
}  # fmt: skip
"""Data sets, and their shares of the conversations."""
DECISION, NAMED, CONTEXT = 95.0, 75.0, 20.0
"""Least percentages: of right decisions for or against a picture, of shown emoji that are named; and the least number
of points by which the context picture must beat a blank one."""
WISHES = "wishes by keywords"
_GROUPS = {
    "wish": WISHES, "similar": "similar pictures", "described": "things described", "occasion": "remarks",
}  # fmt: skip
"""Names under which the pictures of some steps are counted, in any conversation."""
FORCED = 0.9
SHARES = {"requests": 0.8, "dialogues": 0.8, "edits": 0.7, "second rounds of edits": 0.7, "frames of stories": 0.7}
"""Least shares of what the decoder alone gets right from the true captions."""


def measure(
    pipeline: M2ChatPipeline, count: int, wishes: int, seed: int, steps: int, batch_size: int, model_captions: bool
) -> list[dict[str, Any]]:
    """How well a pipeline converses, over conversations of the test split.

    Args:
        pipeline: Pipeline that replies.
        count: Number of conversations.
        wishes: Number of wishes, and of replies of each task, that are drawn with four seeds each.
        seed: Seed of the conversations and of the pictures.
        steps: Denoising steps.
        batch_size: Replies generated together.
        model_captions: Whether the model captions the pictures that are shown, as in a chat, rather than the data.

    Returns:
        A row a measure: name, percentage, 95 % interval, cases, what it must reach and whether it does, and the same
        percentage by the nearest true picture; then rows of Eq. 3 by task, and of pictures at given gates.

    Raises:
        UserError: If the pipeline draws pictures of another size.
    """
    if pipeline.image_size != SIZE:
        raise UserError(
            f"--world=emoji: its pictures have {SIZE} pixels a side, and those of {pipeline.origin.path} "
            f"{pipeline.image_size}: name a model that was trained in this world"
        )
    judge = world_judge()
    eyes, findings, talks = Eyes(judge), Findings(), Talks(pipeline, seed, steps, batch_size, model_captions)
    makers = {name: ConversationMaker("test", seed, judge.pictures) for name in MIX}
    by_data = {name: [makers[name].make(name, k) for k in range(max(1, round(MIX[name] * count)))] for name in MIX}
    given = [sample for made in by_data.values() for sample in made]
    samples = talks.captioned(list(given))
    cases = measure_replies(talks, eyes, samples, findings)
    if model_captions:
        measure_captions(eyes, samples, findings)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if case.is_determined:
            groups.setdefault(_group(case), []).append(case)
    for name, members in groups.items():
        rows = measure_pictures(talks, eyes, name, members, findings, name in ("requests", "dialogues"))
        if name == WISHES:
            named = [partial(shows, "concept", case.scene["concept"]) for case in members]
            for row, pictures in rows.items():
                eyes.add(findings, row.replace(WISHES, "wishes by the name in the data"), pictures, named)
    frames = measure_stories(talks, eyes, [sample for sample in samples if sample.source == "story"], findings)
    gates = gate_rows(talks, eyes, [*cases, *frames], wishes)
    measure_context(talks, eyes, given, findings)
    more = (makers["wish"].make("wish", k) for k in itertools.count(len(by_data["wish"])))
    wanted = (sample for sample in more if "wish" in sample.meta["steps"].values())
    measure_wishes(talks, eyes, list(itertools.islice(wanted, wishes)), findings)
    _set_bars(findings)
    # Decisions first, in the order of their names; the others as they came.
    findings.cases = dict(
        sorted(findings.cases.items(), key=lambda row: row[0] if row[0].startswith("decision") else "e")
    )
    return [*findings.rows(), *gates]


def _group(case: Case) -> str:
    """Name under which a picture is counted."""
    if name := _GROUPS.get(case.step):
        return name
    if case.sample.source == "edit":
        return ("edits", "second rounds of edits", "third rounds of edits")[case.turn // 2]
    if case.step == "story":
        return "stories inside dialogues"
    return {"instruct": "requests", "wish": "things mentioned by the way"}.get(case.sample.source, "dialogues")


def _set_bars(findings: Findings) -> None:
    """What must hold: decisions and names by themselves, pictures against the image decoder alone."""
    bars = {name: DECISION for name in findings.cases if name.startswith("decision") and name.count(":") == 1}
    bars |= {"asked: what is shown": NAMED}
    for name, share in SHARES.items():
        # A decoder that draws nothing right says nothing about what stands before it.
        if f"right: {name}" in findings.cases and (decoder := findings.rate(f"decoder right: {name}")):
            bars |= {f"right: {name}": share * decoder, f"forced right: {name}": FORCED * decoder}
    if "only shown: blank picture" in findings.cases:
        bars["only shown: context picture"] = min(100.0, findings.rate("only shown: blank picture") + CONTEXT)
    findings.bars = {name: bar for name, bar in bars.items() if name in findings.cases}
