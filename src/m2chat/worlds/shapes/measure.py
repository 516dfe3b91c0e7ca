"""How well a pipeline converses in the shapes world, over held-out conversations, by the judge: `m2chat measure`."""

from __future__ import annotations

from typing import Any

from m2chat.pipeline import M2ChatPipeline
from m2chat.worlds.shapes.metrics import (
    ShapeTalks,
    measure_descriptions,
    measure_edits,
    measure_replies,
    measure_stories,
    measure_wishes,
)
from m2chat.worlds.talks import Findings

MIX = {"instruct": 0.2, "dialogue": 0.25, "mixed": 0.2, "edit": 0.2, "story": 0.15}
"""Conversations, named by what makes them, and their shares."""
DECISION, SHARE = 95.0, 0.8
"""Least percentage of right decisions for or against a picture; least share of what the decoder alone gets right."""


def measure(
    pipeline: M2ChatPipeline, count: int, wishes: int, seed: int, steps: int, batch_size: int, model_captions: bool
) -> list[dict[str, Any]]:
    """How well a pipeline converses, over conversations of the test split.

    Args:
        pipeline: Pipeline that replies.
        count: Number of conversations.
        wishes: Number of vague wishes, drawn with four seeds each.
        seed: Seed of the conversations and of the pictures.
        steps: Denoising steps.
        batch_size: Replies generated together.
        model_captions: Whether the model captions the pictures that are shown, as in a chat, rather than the data.

    Returns:
        A row a measure: name, percentage, 95 % interval, cases, what it must reach and whether it does.
    """
    talks = ShapeTalks(pipeline, seed, steps, batch_size, model_captions)
    findings = Findings()
    samples = {kind: talks.make(kind, round(share * count)) for kind, share in MIX.items()}
    edits = measure_replies(talks, [sample for made in samples.values() for sample in made], findings)
    measure_edits(talks, samples["edit"], edits, findings)
    measure_descriptions(talks, samples["edit"], findings)
    measure_stories(talks, samples["story"], findings)
    measure_wishes(talks, wishes, findings)
    _set_bars(findings)
    return findings.rows()


def _set_bars(findings: Findings) -> None:
    """What must hold: decisions by themselves, pictures against the image decoder alone."""
    for name in findings.cases:
        if name.startswith("decision"):
            findings.bars[name] = DECISION
        elif name.startswith(("right:", "kept:")) and f"decoder {name}" in findings.cases:
            findings.bars[name] = SHARE * findings.rate(f"decoder {name}")
        elif name.startswith("wishes:"):
            findings.bars[name] = 100.0
