"""Plain names of the metrics and one line on what each means: the same in tables, reports and pages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Group = Literal["headline", "control", "count"]
GROUPS: dict[Group, str] = {
    "headline": "Results",
    "control": "Controls, and results by attribute",
    "count": "Bookkeeping",
}
"""Groups of metrics in their order, with their headings."""


@dataclass(frozen=True)
class MetricName:
    """How a metric is shown.

    Args:
        plain: Name.
        meaning: One line on what it says, and in which direction it is better.
        group: Group in which it is shown.
    """

    plain: str
    meaning: str
    group: Group = "headline"


STAGES = {"describe": "stage 0", "align": "stage 1", "m3ft": "stage 2"}
"""Plain names of the stages of training."""
NAMES: dict[str, MetricName] = {
    "all_right": MetricName("pictures right, %", "Generated pictures that show everything their caption names."),
    "scene_right": MetricName("whole scenes right, %", "The same for everything in the true picture."),
    "omitted_right": MetricName("hidden attributes right, %", "Of what only the context picture shows."),
    "clip_score": MetricName("CLIP score", "Likeness of pictures and captions, 0-100; higher is better."),
    "fid_micro": MetricName("fid_micro", "Distance from the true pictures by our small network; not FID. Lower."),
    "fid": MetricName("FID", "Distance from the true pictures by Inception-v3. Lower is better."),
    "inter_rel": MetricName("InterRel", "Relation of texts and pictures across a reply (Eq. 8), 0-100; higher."),
    "bleu_1": MetricName("BLEU-1", "Words that replies share with the true ones, 0-100; higher is better."),
    "bleu_2": MetricName("BLEU-2", "Pairs of words that they share."),
    "rouge_l": MetricName("ROUGE-L", "Longest common sequence of words, 0-100; higher is better."),
    "mm_relevance": MetricName("MM-Relevance", "F1 of likeness to the true reply, part by part (MMDialog), 0-100."),
    "edit_direction": MetricName("direction of change", "Whether the picture changed as its caption did, 0-100."),
    "edit_text_score": MetricName("CLIP score after the edit", "Likeness of edited pictures to their caption."),
    "edit_clip_i_source": MetricName("likeness to the source", "How much of the picture before is still there."),
    "story_consistency": MetricName("consistency of frames", "Likeness of each frame to the next; 100 is not the aim."),
    "clip_i": MetricName("CLIP-I", "Likeness of generated to true pictures, 0-100; higher is better."),
    "structure": MetricName("structure right, %", "Replies with texts and pictures in the order of the true ones."),
    "pictures_missing": MetricName("pictures not drawn", "Replies that should have a picture and have none.", "count"),
    "inter_rel_sum": MetricName("InterRel, literal sum", "Eq. 8 as printed, without the mean.", "control"),
    "inter_rel_undefined": MetricName("replies without InterRel", "Replies with one part alone.", "count"),
    "mm_relevance_precision": MetricName("MM-Relevance, precision", "Over the parts of the replies.", "control"),
    "mm_relevance_recall": MetricName("MM-Relevance, recall", "Over the parts of the true replies.", "control"),
}  # fmt: skip
"""Metric to its name, in the order of reports."""
_SAME = {"clip": "clip_score", "omitted": "omitted_right"}
"""Other keys of some metrics, in the scores of single samples and in comparisons."""
_ENDINGS = (
    ("_a_where_b", "{}: of a, where b is right", "Share of a's among those pictures that b has right.", "headline"),
    ("_a", "{}: a", "Of the first of two rows.", "headline"),
    ("_b", "{}: b", "Of the second.", "headline"),
    ("_difference", "{}: a - b", "Paired, in points.", "headline"),
    ("_oracle", "{}, of the true pictures", "The same for the reference: the best that can be reached.", "control"),
    ("_shuffled", "{}, captions shuffled", "The same with other samples' captions: the worst that chance gives.",
     "control"),
    ("_not_finite", "{}: not finite", "Values that were left out since they are no numbers.", "count"),
    ("_n_generated", "{}: generated pictures", "Number of pictures that went in.", "count"),
    ("_n_real", "{}: true pictures", "Number of pictures that went in.", "count"),
)  # fmt: skip


def metric_name(metric: str) -> MetricName:
    """How a metric is shown; one of a kind of sample, ``name/kind``, with the kind; an unknown one by its key."""
    metric, _, kind = metric.partition("/")
    if kind:
        known = metric_name(metric)
        return replace(known, plain=f"{known.plain}: {kind}")
    metric = _SAME.get(metric, metric)
    if metric in NAMES:
        return NAMES[metric]
    for ending, plain, meaning, group in _ENDINGS:
        if metric.endswith(ending):
            stem = _SAME.get(metric.removesuffix(ending), metric.removesuffix(ending))
            return MetricName(plain.format(NAMES[stem].plain if stem in NAMES else stem), meaning, group)  # type: ignore[arg-type]
    if match := re.fullmatch(r"right_(\w+?)(_2)?", metric):
        which = f"second {match[1]}" if match[2] else match[1]
        return MetricName(f"{which} right, %", "Where the caption names it.", "control")
    if match := re.fullmatch(r"clip_score_frame_(\d+)", metric):
        return MetricName(f"CLIP score, frame {match[1]}", "Of each frame by its place in the story.", "control")
    return MetricName(metric, "", "control")


def grouped(metrics: Iterable[str]) -> dict[Group, list[str]]:
    """The metrics of each group that has some, in the order in which they are shown."""
    order = {name: number for number, name in enumerate(NAMES)}
    ranked = sorted(metrics, key=lambda name: (order.get(name.partition("/")[0], len(order)), name))
    parts = {group: [name for name in ranked if metric_name(name).group == group] for group in GROUPS}
    return {group: names for group, names in parts.items() if names}


def shown_value(metric: str, value: float) -> str:
    """A value as a cell of a table: counts are whole numbers, other values have two digits."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if metric_name(metric).group == "count" else f"{value:.2f}"
