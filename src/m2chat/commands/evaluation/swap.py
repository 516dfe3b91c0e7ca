"""Another image decoder for a trained connector: is the meaning kept, and how long does a picture take?

The same evaluation runs once with each decoder. Words, captions and gates come before any decoder and stay as they are;
what differs is how the pictures turn out, sample by sample from the same noise.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from m2chat.commands.evaluation.run import call, clear
from m2chat.errors import UserError
from m2chat.evaluation.compare import compare
from m2chat.evaluation.predictions import read_predictions
from m2chat.evaluation.results import RESULTS, read_results, settings_hash
from m2chat.evaluation.statistics import Difference, difference
from m2chat.files import write_whole
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import TEXT_SPACE, decoder_fingerprints, drawing_settings, mismatch
from m2chat.models.swap import with_decoder
from m2chat.training.config import EvalConfig

MEANING = {"clip": "CLIP score", "inter_rel": "InterRel", "all_right": "pictures right, %"}
"""Metrics of the table: name for single samples, and name shown. Of those, an evaluation need not have all."""
ROUNDS = 12
"""Paired measurements of the time; each decoder draws once in every round, so that a busy machine slows all of them."""
_BATCH = 4


@dataclass(frozen=True)
class MeaningVerdict:
    """Whether the share of right pictures stays.

    Args:
        state: ``kept``: the whole interval of the difference is within the tolerance; ``lost``: all of it is below;
            ``undecided``: neither.
        right: The difference, in percentage points.
        needed: Number of pictures that would decide if the difference stayed as it is; None if no number would.
    """

    state: Literal["kept", "lost", "undecided"]
    right: Difference
    needed: int | None = None


@dataclass(frozen=True)
class Swap:
    """A decoder beside the one of the training.

    Args:
        name: Path that named it.
        folder: Folder of its evaluation.
        steps: Denoising steps.
        guidance: Guidance scale.
        differences: Each metric with this decoder (`first`) and with that of the training (`second`).
        verdict: Whether the meaning is kept; None if no picture was judged.
    """

    name: str
    folder: Path
    steps: int
    guidance: float
    differences: list[Difference]
    verdict: MeaningVerdict | None


@dataclass(frozen=True)
class Drawing:
    """A decoder, and how it draws.

    Args:
        backbone: Backbones with it.
        steps: Denoising steps.
        guidance: Guidance scale.
    """

    backbone: BackboneConfig
    steps: int
    guidance: float

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the decoder's components."""
        return decoder_fingerprints(self.backbone)


def swap(
    run: Path,
    decoders: Sequence[str],
    out: Path,
    lightning: str = "lightning",
    tolerance: float = 5.0,
    extra: Sequence[str] = (),
) -> list[Swap]:
    """Evaluates with other decoders and compares with the evaluation that is there.

    Args:
        run: Folder of an evaluation, with its ``config.yaml`` and results.
        decoders: What to draw with; see `with_decoder`.
        out: Folder of the evaluations, one each; those that are complete are not done again.
        lightning: Command that evaluates.
        tolerance: Percentage points by which the share of right pictures may differ.
        extra: Further arguments of every evaluation.

    Raises:
        UserError: If `run` is no evaluation, a decoder has another text space, or an evaluation fails.
    """
    settings = _settings(run)
    backbone, how = BackboneConfig(**settings["backbone"]), settings["evaluation"]
    before = Drawing(
        backbone, *EvalConfig(steps=how.get("steps"), guidance=how.get("guidance")).drawing(backbone.decoder)
    )
    drawings = [_drawing(before, name) for name in decoders]
    folders = [out / f"{Path(name).stem}-{_key(drawing)}" for name, drawing in zip(decoders, drawings, strict=True)]
    results = read_results(run / RESULTS)[1]
    for drawing, folder in zip(drawings, folders, strict=True):
        if not (folder / RESULTS).is_file():
            _evaluate(run, drawing, folder, results, lightning, extra)
    seconds = drawing_seconds([before, *drawings])
    rows = []
    for index, (name, drawing, folder) in enumerate(zip(decoders, drawings, folders, strict=True), 1):
        differences = [item for item in compare(folder, run) if item.metric in MEANING]
        differences.sort(key=lambda item: list(MEANING).index(item.metric))
        differences += [*_gates(folder, run), difference("seconds", seconds[index], seconds[0])]
        right = next((item for item in differences if item.metric == "all_right"), None)
        verdict = None if right is None else judged(right, tolerance)
        rows.append(Swap(name, folder, drawing.steps, drawing.guidance, differences, verdict))
    return rows


def judged(right: Difference, tolerance: float) -> MeaningVerdict:
    """Whether the meaning is kept, as far as the pictures decide it.

    Args:
        right: Share of right pictures with the swapped decoder and without.
        tolerance: Percentage points by which it may differ.
    """
    change = right.first - right.second
    if right.low == right.high:  # no picture differs: up to 3 / n of all may (the rule of three), with 95 % confidence
        enough = math.ceil(300 / tolerance) if tolerance > 0 else None
        if enough is not None and right.n >= enough:
            return MeaningVerdict("kept", right)
        return MeaningVerdict("undecided", right, enough)
    if right.high < -tolerance:
        return MeaningVerdict("lost", right)
    if right.low >= -tolerance and (right.high <= tolerance or right.low > tolerance):
        return MeaningVerdict("kept", right)
    margin, half = abs(abs(change) - tolerance), (right.high - right.low) / 2
    return MeaningVerdict("undecided", right, math.ceil(right.n * (half / margin) ** 2) if margin else None)


def drawing_seconds(drawings: Sequence[Drawing], rounds: int = ROUNDS, batch: int = _BATCH, device: str = "cpu") -> Any:
    """Seconds a picture, from a given condition to pixels: the UNet's steps and the VAE, without words.

    Args:
        drawings: Decoders, and how they draw.
        rounds: Measurements of each, in turn.
        batch: Pictures of one measurement.
        device: Device that draws.

    Returns:
        (decoders, rounds).
    """
    import torch

    from m2chat.models.denoising import size_ids
    from m2chat.models.image_decoder import ImageDecoder

    seconds = np.zeros((len(drawings), rounds))
    loaded = [ImageDecoder(item.backbone.image_decoder, config=item.backbone.decoder).to(device) for item in drawings]
    generator = torch.Generator().manual_seed(0)
    for turn in range(-1, rounds):  # the first one is to warm up
        for index, (decoder, drawing) in enumerate(zip(loaded, drawings, strict=True)):
            side = decoder.image_size
            ids = size_ids(side, side, batch).to(device)
            text = torch.randn(batch, decoder.queries, decoder.sequence_width, generator=generator).to(device)
            pooled = torch.randn(batch, decoder.pooled_width, generator=generator).to(device) if decoder.is_xl else None
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            decoder.sample(text, pooled, ids, range(batch), drawing.steps, drawing.guidance).cpu()
            seconds[index, turn] = (time.perf_counter() - start) / batch
    return seconds


def _key(drawing: Drawing) -> str:
    """A short name of what draws and how: other weights under the same path are evaluated anew."""
    how = {"steps": drawing.steps, "guidance": drawing.guidance}
    return settings_hash({"tensors": drawing.fingerprints, **drawing_settings(drawing.backbone), **how})[:6]


def _settings(run: Path) -> dict[str, Any]:
    """``model.init_args`` of an evaluation.

    Raises:
        UserError: If the folder holds none.
    """
    if not (run / RESULTS).is_file() or not (run / "config.yaml").is_file():
        raise UserError(
            f"{run} is no evaluation: it needs {RESULTS} and config.yaml, as `lightning test --config "
            "configs/eval_mmdialog.yaml` leaves them"
        )
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    if not settings.get("backbone") or not settings.get("evaluation") or "m3adapter" not in settings:
        raise UserError(f"{run} is no evaluation of M²Chat: its config.yaml has no model with a backbone and m3adapter")
    return settings


def _drawing(before: Drawing, name: str) -> Drawing:
    """A decoder with steps and guidance of its preset, or else those of the evaluation.

    Raises:
        UserError: If its text space is another one.
    """
    backbone = with_decoder(before.backbone, name)
    how = before if backbone.decoder.preset is None else backbone.decoder
    drawing = Drawing(backbone, how.steps, how.guidance)
    theirs, ours = before.fingerprints, drawing.fingerprints
    if differing := [part for part in TEXT_SPACE if theirs.get(part) != ours.get(part)]:
        raise mismatch(differing, "the evaluated model", backbone, before.backbone)
    return drawing


def _evaluate(
    run: Path, drawing: Drawing, folder: Path, protocol: dict[str, Any], lightning: str, extra: Sequence[str]
) -> None:
    """Runs the evaluation of `run` with another decoder.

    Raises:
        UserError: If it fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear(folder)
    checkpoint = protocol.get("checkpoint")
    evaluation = {"steps": drawing.steps, "guidance": drawing.guidance}
    changes = {"backbone": asdict(drawing.backbone), "evaluation": evaluation}
    overlay = folder.parent / f"{folder.name}.yaml"
    write_whole(overlay, [yaml.safe_dump({"model": {"init_args": changes}})])
    logger = "--trainer.logger"
    command = [
        *shlex.split(lightning), "test", "--config", str(run / "config.yaml"), "--config", str(overlay),
        *(["--ckpt_path", str(checkpoint)] if checkpoint else []), logger, "TensorBoardLogger", f"{logger}.save_dir",
        ".", f"{logger}.name", str(folder.parent), f"{logger}.version", folder.name, *extra,
    ]  # fmt: skip
    print(shlex.join(command), flush=True)
    if code := call(command):
        raise UserError(f"the evaluation in {folder} failed with exit code {code}; see above")
    digest = read_results(folder / RESULTS)[1].get("weights_digest")
    if digest != protocol.get("weights_digest"):  # `weights: auto` takes the newest, which may be another by now
        clear(folder)
        raise UserError(
            f"{folder} evaluated other weights ({digest}) than {run} ({protocol.get('weights_digest')}): name those of "
            f"{run} with --extra --ckpt_path FILE"
        )


def _gates(first: Path, second: Path) -> list[Difference]:
    """The gate, picture by picture."""
    sides = []
    for folder in (first, second):
        rows = {row["id"]: (row["meta"].get("gate") or []) for row in read_predictions(folder, "meta")}
        sides.append({f"{id_}/{k}": float(value) for id_, values in rows.items() for k, value in enumerate(values)})
    shared = sorted(sides[0].keys() & sides[1].keys())
    if len(shared) < 2:
        return []
    gates = [np.array([side[key] for key in shared]) for side in sides]
    return [difference("gate", gates[0], gates[1])]
