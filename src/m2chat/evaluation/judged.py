"""What the judge says of the pictures of a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from m2chat.evaluation.judge import judge
from m2chat.evaluation.targets import Target
from m2chat.world import parse_caption
from m2chat.world.render import IMAGE_SIZE

_MICRO = (IMAGE_SIZE, IMAGE_SIZE, 3)
"""Shape of the micro world's pictures; the judge reads no others."""


@dataclass
class Judged:
    """Verdicts on a reply's pictures; each list has one truth value a picture or attribute.

    Args:
        all_right: Of generated pictures: every attribute that the true caption names is there.
        scene_right: Of generated pictures: so is every attribute of the true picture, where it is known.
        omitted_right: Of the attributes that only the context picture shows: is it there?
        oracle: `all_right` of the true pictures.
        attributes: Of each attribute that captions name: is it there?
        seen: The scene that each generated picture was taken for.
    """

    all_right: list[bool] = field(default_factory=list)
    scene_right: list[bool] = field(default_factory=list)
    omitted_right: list[bool] = field(default_factory=list)
    oracle: list[bool] = field(default_factory=list)
    attributes: dict[str, list[bool]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)


def judge_targets(targets: Sequence[Target]) -> Judged:
    """Judges the generated and the true pictures of a reply; those that were not drawn are left out.

    So are targets from outside the micro world, whose captions name nothing that the judge could look for.
    """
    judged = Judged()
    targets = [target for target in targets if target.scene is not None or parse_caption(target.caption)]
    drawn = [(target, target.generated) for target in targets if target.generated is not None]
    known = [(target, target.truth) for target in targets if target.truth is not None and target.truth.shape == _MICRO]
    pictures = [picture for _, picture in (*drawn, *known)]
    verdicts = judge(np.stack(pictures)) if pictures else []
    for (target, _), verdict in zip(drawn, verdicts[: len(drawn)], strict=True):
        named = parse_caption(target.caption)
        judged.seen.append(verdict.scene.key)
        judged.all_right.append(verdict.all_right(named))
        for name, right in verdict.right(named).items():
            judged.attributes.setdefault(name, []).append(right)
        if target.scene is not None:
            judged.scene_right.append(verdict.all_right(target.scene))
            hidden = {name: target.scene[name] for name in target.omitted}
            judged.omitted_right += verdict.right(hidden).values()
    for (target, _), verdict in zip(known, verdicts[len(drawn) :], strict=True):
        judged.oracle.append(verdict.all_right(parse_caption(target.caption)))
    return judged
