"""Entry of the manifest for the shipped M²Chat weights: how they were trained, and what evaluations measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from m2chat.errors import UserError
from m2chat.worlds.parts import Facts

_QUOTED = ("all_right", "omitted_right", "clip_score", "inter_rel", "bleu_1", "bleu_2", "rouge_l")


def trained_facts(root: Path, evaluations: Sequence[Path]) -> Facts:
    """Seed, steps and quality of ``m2chat/*.ckpt``.

    Args:
        root: Folder of the backbones, such as ``data/micro``.
        evaluations: Folders of `lightning test` of one training seed, made with the weights that were released.

    Raises:
        UserError: If there is no result in a folder, or they are of several seeds.
    """
    from m2chat.checksums import is_sealed
    from m2chat.integrity import not_verified
    from m2chat.models.checkpoints import read_checkpoint

    quality: dict[str, dict[str, float]] = {}
    seeds = set()
    for run in evaluations:
        path = run / "results.json"
        if not path.is_file():
            raise UserError(f"--evaluations {run}: there is no results.json: name folders that `lightning test` wrote")
        results = json.loads(path.read_text())
        seeds.add(results["protocol"]["seed"])
        quoted = {name: results["metrics"].get(name) for name in _QUOTED}
        quality[run.name] = {name: round(entry["value"], 2) for name, entry in quoted.items() if entry}
    if len(seeds) > 1:
        raise UserError(f"--evaluations: they are of the seeds {sorted(seeds)}, but the weights are of one")
    shipped = sorted((root / "m2chat").glob("*.ckpt"))
    with not_verified():  # the manifest is still that of the files before
        steps = {path.stem: int(read_checkpoint(path)["global_step"]) for path in shipped if is_sealed(path)}
    return {"seed": seeds.pop() if seeds else None, "steps": steps, **quality}
