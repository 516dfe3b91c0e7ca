"""Two evaluations of the same samples: differences of their scores, and their pictures judged again side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from m2chat.data.images import BadImage, read_image
from m2chat.errors import UserError
from m2chat.evaluation.predictions import read_predictions, sample_scores
from m2chat.evaluation.results import RESULTS, read_results
from m2chat.evaluation.statistics import Difference, Estimate, difference, estimate
from m2chat.evaluation.targets import known_of
from m2chat.world import Judged, Target, World, find_world


def compare(first: Path, second: Path) -> list[Difference]:
    """Differences of every metric that has values for single samples, by paired bootstrap.

    BLEU is that of the corpus: counts are resampled, not scores of sentences. FID has no values for single samples.

    Args:
        first: Folder with ``predictions.jsonl``.
        second: Folder of another evaluation of the same samples.

    Raises:
        UserError: If they have fewer than two samples in common.
    """
    a, b = ({row["id"]: row for row in read_predictions(folder, "scores")} for folder in (first, second))
    shared = [id_ for id_ in a if id_ in b]
    if not shared:
        raise UserError(f"{first} and {second} hold no predictions of the same samples")
    if len(shared) < 2:
        raise UserError(
            f"{first} and {second} share {len(shared)} sample: an interval needs at least 2, and a hundred say more"
        )
    differences = []
    counted = [id_ for id_ in shared if all(side[id_]["scores"].get("bleu_statistics") for side in (a, b))]
    if len(counted) > 1:
        from m2chat.metrics.text_overlap import bleu  # torchmetrics takes seconds to import

        counts = [np.array([side[id_]["scores"]["bleu_statistics"] for id_ in counted]) for side in (a, b)]
        differences += [
            difference(f"bleu_{order}", counts[0], counts[1], partial(bleu, order=order))
            for order in (1, 2)
            if (counts[0][:, -1] >= order).any()  # else it is undefined: no reference has so many words
        ]
    scores = [(sample_scores(a[id_]), sample_scores(b[id_])) for id_ in shared]
    names = dict.fromkeys(name for of_first, _ in scores for name in of_first if not name.startswith("bleu_"))
    for name in names:
        pairs = np.array([(x[name], y[name]) for x, y in scores if name in x and name in y])
        if len(pairs) > 1:
            differences.append(difference(name, pairs[:, 0], pairs[:, 1]))
    return differences


def sample_counts(first: Path, second: Path) -> tuple[int, int, int]:
    """Samples of one evaluation, of another, and those that both have, which alone are compared."""
    a, b = ({row["id"] for row in read_predictions(folder)} for folder in (first, second))
    return len(a), len(b), len(a & b)


def compare_pictures(first: Path, second: Path, world: str | None = None) -> dict[str, Estimate]:
    """Shares of correct pictures, in percent, over the pictures that both evaluations have.

    The world's judge reads the pictures from their files; nothing is generated, and recorded scores are not used.

    Args:
        first: Folder "a" with ``predictions.jsonl`` and its pictures.
        second: Folder "b" of another evaluation of the same samples.
        world: Name of the generated world; None means that of the first protocol, and ``shapes`` if it names none.

    Returns:
        ``all_right_a`` and ``_b``; ``all_right_a_where_b``: share of a's correct pictures among those that b has
        correct; if any attribute was omitted from the captions also ``omitted_a``, ``omitted_b`` and their paired
        ``omitted_difference``.

    Raises:
        UserError: If they have no picture in common, or there is no such world.
    """
    judge = find_world(world or _recorded_world(first))
    a, b = _judged_pictures(first, judge), _judged_pictures(second, judge)
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise UserError(f"{first} and {second} hold no pictures of the same samples")
    right_a, right_b = (100 * np.array([side[key].all_right[0] for key in shared], np.float64) for side in (a, b))
    shares = {
        "all_right_a": estimate(right_a),
        "all_right_b": estimate(right_b),
        "all_right_a_where_b": estimate(right_a[right_b == 100]),
    }
    omitted = [(np.mean(a[key].omitted_right), np.mean(b[key].omitted_right)) for key in shared if a[key].omitted_right]
    if omitted:
        of_a, of_b = 100 * np.array(omitted, np.float64).T
        shares |= {
            "omitted_a": estimate(of_a),
            "omitted_b": estimate(of_b),
            "omitted_difference": estimate(of_a - of_b),
        }
    return shares


def _recorded_world(folder: Path) -> str:
    protocol = read_results(folder / RESULTS)[1] if (folder / RESULTS).is_file() else {}
    return str(protocol.get("world") or "shapes")


def _judged_pictures(folder: Path, world: World) -> dict[str, Judged]:
    """Verdicts on the generated pictures that have a reference in the world, by ``"<prediction id>/<place>"``."""
    verdicts = {}
    for row in read_predictions(folder, "reference", "generated", "meta"):
        references = [segment for segment in row["reference"] if segment["caption"] is not None]
        generated = [segment["image"] for segment in row["generated"] if segment["image"]]
        # The k-th generated picture stands for the k-th reference; the rest of the longer list has no counterpart.
        known = known_of(row["meta"], len(references))
        for index, (reference, name) in enumerate(zip(references, generated, strict=False)):
            try:
                picture = read_image(folder / name)
            except (OSError, BadImage) as error:
                raise UserError(f"{folder / name} is missing or damaged ({error}): evaluate again") from error
            target = Target(reference["caption"], None, picture, *known[index])
            judged = world.judge([target])
            if judged.all_right:  # empty for a caption from outside the world
                verdicts[f"{row['id']}/{index}"] = judged
    return verdicts
