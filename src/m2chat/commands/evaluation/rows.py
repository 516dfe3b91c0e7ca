"""The rows of the tables: what each trains, by which configurations, and what it is tested on.

A row's settings are files in ``configs/``; here stands only which of them belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ALIGN = ("--model", "AlignModule")
"""Evaluates a stage-1 checkpoint: its layout is forced, since it never learned the two tokens."""


@dataclass(frozen=True)
class Fit:
    """A training.

    Args:
        name: Of its folder.
        config: In ``configs/``, without the ending.
        own: Whether the row's overlay belongs to it; else all rows share it, with `scripts/seed.sh` too.
    """

    name: str
    config: str
    own: bool = True


STAGE_1, STAGE_2 = Fit("stage1", "stage1", own=False), Fit("stage2", "stage2", own=False)


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        name: Of its folder.
        title: In tables.
        fits: Its trainings, each starting from the one before.
        tests: Evaluations: names of configurations in ``configs/``.
        overlay: Settings in ``configs/``, without the ending, behind those of its own trainings and of its tests.
        arguments: Further arguments of the tests.
        seeds: Training seeds that are run by default.
        shared: Test to the folder of `scripts/seed.sh` that holds the same.
        group: ``main`` (Tables 1 and 2) or ``ablation``.
        paper: Name of the row in the paper's tables.
    """

    name: str
    title: str
    fits: tuple[Fit, ...]
    tests: tuple[str, ...]
    overlay: str = ""
    arguments: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    shared: Mapping[str, str] = field(default_factory=dict)
    group: str = "ablation"
    paper: str = ""


_PICTURES = ("eval_coco", "eval_cc3m")
_ALL = (*_PICTURES, "eval_mmdialog", "eval_story", "eval_edit")
_TALK = ("eval_mmdialog", "eval_edit", "eval_context")
_THREE = (0, 1, 2)


def _stage_2(name: str, title: str, tests: tuple[str, ...] = _TALK, **options: object) -> Row:
    fits = (STAGE_1, Fit("stage2", "stage2"))
    return Row(name, title, fits, tests, f"ablations/{name}", **options)  # type: ignore[arg-type]


def _stage_1(name: str, title: str) -> Row:
    return Row(name, title, (Fit("stage1", "stage1"),), _PICTURES, f"ablations/{name}", ALIGN)


ROWS: tuple[Row, ...] = (
    Row("sd15", "SD 1.5", (), _PICTURES, "rows/sd15", group="main", paper="SD 1.5"),
    Row("sdxl", "SDXL", (), _PICTURES, "rows/sdxl", group="main", paper="SDXL"),
    Row(
        "vlm_sd", "VLM + SD finetune", (Fit("stage2", "stage2"),), ("eval_mmdialog",), "rows/vlm_sd",
        seeds=_THREE, group="main", paper="VLM+SD finetune (7B)",
    ),
    Row(
        "stage1", "M²Chat (stage 1 only)", (STAGE_1,), _ALL, arguments=ALIGN, seeds=_THREE,
        shared={"eval_mmdialog": "eval_mmdialog_stage1"}, group="main", paper="M2Chat (7B)",
    ),
    Row(
        "m3ft", "M²Chat (M³FT)", (STAGE_1, STAGE_2), (*_ALL, "eval_context"), seeds=_THREE,
        shared={name: name for name in (*_ALL, "eval_context")}, group="main", paper="M2Chat (M3FT, 7B)",
    ),
    Row(
        "vlm_sd_caption", "VLM + SD finetune, caption as prompt", (Fit("stage2", "stage2"),), ("eval_mmdialog",),
        "rows/vlm_sd_caption", seeds=_THREE,
    ),
    _stage_2("gate_off", "gate off, no image branch", shared={"eval_context": "eval_context_gate_off"}),
    _stage_2("gate_constant", "gate constant (0.5)"),
    _stage_2("gate_paper", "gate of the paper (clamped cosine)"),
    _stage_2("f_img_off", "without f_img"),
    _stage_2("no_edits", "trained without edits", ("eval_mmdialog", "eval_edit")),
    Row(
        "layers", "several LLaMA layers", (Fit("stage1", "stage1"), Fit("stage2", "stage2")),
        ("eval_cc3m", *_TALK), "ablations/layers",
    ),
    _stage_1("align_only", "stage 1: L_align alone"),
    _stage_1("ddpm_only", "stage 1: L_ddpm alone (φ = 0)"),
    _stage_1("phi_0.1", "stage 1: φ = 0.1"),
    _stage_1("phi_10", "stage 1: φ = 10"),
)  # fmt: skip
"""In the order of the tables."""
