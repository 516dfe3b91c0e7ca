"""What `m2chat measure --world emoji` finds, with a pipeline that replies as the data do and one that only refuses."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emoji_world import everything
from m2chat.commands import main
from m2chat.commands.measure import _lines
from m2chat.data.network_inputs import VisionInput
from m2chat.errors import UserError
from m2chat.evaluation import statistics
from m2chat.models.config import GateConfig
from m2chat.pipeline.drawing import DrawSettings
from m2chat.schema import Picture, Reply, Sample, Segment
from m2chat.text.view import segments_of
from m2chat.worlds.emoji import gates, measure
from m2chat.worlds.emoji.captions import CaptionReader, caption_of
from m2chat.worlds.emoji.conversations import ConversationMaker
from m2chat.worlds.emoji.judge import Verdict
from m2chat.worlds.emoji.scenes import STYLES, Scene
from m2chat.worlds.talks import Findings

COUNT = 50


class SureJudge:
    """Knows every flat picture by its colour; anything else resembles nothing."""

    pictures = everything()

    def __init__(self) -> None:
        self.scenes = {tuple(p[0, 0]): s for p, s in zip(self.pictures.pixels, self.pictures.scenes, strict=True)}

    def read(self, pictures: Any) -> list[Verdict]:
        known = [self.scenes.get(tuple(picture[0, 0])) for picture in pictures]
        nothing = self.pictures.scenes[0]
        return [Verdict(scene or nothing, 0.0 if scene else 200.0, ()) for scene in known]


class Perfect:
    """Replies as the data do, and draws the true pictures; before a blank context picture it forgets the style."""

    image_size = 64
    origin = SimpleNamespace(path="stub")
    device = torch.device("cpu")
    vision = VisionInput(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def __init__(self) -> None:
        self.lock, self.judge = threading.Lock(), SureJudge()
        self.reader = CaptionReader(everything().scenes)
        self.pixels = {s.file: p for s, p in zip(everything().scenes, everything().pixels, strict=True)}
        self.of_concept: dict[str, list[Scene]] = {}
        for scene in everything().scenes:
            self.of_concept.setdefault(scene.concept, []).append(scene)
        gate = SimpleNamespace(config=GateConfig("learnable"))
        self.model = SimpleNamespace(m3adapter=SimpleNamespace(gate=gate))
        self.samples: dict[str, Sample] = {}
        for name, share in measure.MIX.items():
            maker = ConversationMaker("test", 1, everything())
            for k in range(max(1, round(share * COUNT))):
                sample = maker.make(name, k)
                self.samples[sample.id] = sample

    def draw_settings(self, steps: int | None = None) -> DrawSettings:
        return DrawSettings(steps or 4, size=64)

    def replier(self, *settings: Any, **more: Any) -> Perfect:
        return self

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        return [caption_of(verdict.scene) for verdict in self.judge.read(pictures)]

    def of_caption(self, caption: str, style: str = "noto") -> Picture:
        wanted = {"style": style} | self.reader.read(caption)
        same = (s for s in self.of_concept[wanted["concept"]] if wanted.items() <= s.attributes.items())
        return self.pixels[next(same).file]

    def draw_captions(self, captions: Sequence[str], seeds: Sequence[int], draw: Any) -> list[Picture]:
        return [self.of_caption(caption) for caption in captions]

    def answer(self, name: str) -> Reply:
        """The reference reply, with its pictures."""
        key, _, turn = name.partition("#")
        sample = self.samples[key]
        segments, targets = segments_of(sample.turns[int(turn)], sample)
        return Reply(segments, tuple(None if k is None else sample.images[k].pixels for k in targets))

    def reply(self, batch: Any, given: str = "nothing", seeds: Sequence[int] = ()) -> tuple[list[Reply], list[Any]]:
        replies = []
        for name, view, pixels, seed in zip(batch.names, batch.views, batch.context_pixels, seeds, strict=True):
            if given != "nothing":
                manner = list(STYLES)[seed % 2] if self.model.m3adapter.gate.config.mode == "constant" else "noto"
                reply = Reply(view.reply[:1], (self.of_caption(view.reply[0].caption, manner),))
            else:
                reply = self.answer(name)
                if view.context is not None and bool((pixels == 1).all()):
                    blank = np.full((64, 64, 3), 250, np.uint8)
                    reply = Reply(reply.segments, tuple(p if p is None else blank for p in reply.images))
            replies.append(reply)
        pictures = [len(reply.pictures) for reply in replies]
        return replies, [{"gate": [0.4] * count, "cosine": [0.5] * count} for count in pictures]


class Refusing(Perfect):
    def answer(self, name: str) -> Reply:
        return Reply((Segment("I cannot draw that."),), (None,))


def measured(pipe: Perfect, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    def four(pipe: Perfect, text: str, seeds: Sequence[int], steps: int) -> list[Any]:
        pictures: list[Scene] = [s for s in everything().scenes if s.concept == "red heart"]
        return [SimpleNamespace(images=[pipe.pixels[pictures[seed % len(pictures)].file]]) for seed in seeds]

    monkeypatch.setattr(statistics, "RESAMPLES", 20)  # intervals of 70 rows would take most of the time
    monkeypatch.setattr(measure, "world_judge", lambda: pipe.judge)
    monkeypatch.setattr(gates, "wish", four)
    rows = measure.measure(pipe, COUNT, 2, 1, 4, 32, True)  # type: ignore[arg-type]
    _lines([row for row in rows if "percent" in row])
    return {row.get("measure", str(next(iter(row.items())))): row for row in rows}


def test_replies_like_the_datas_reach_every_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(Perfect(), monkeypatch)
    barred = {name: row for name, row in rows.items() if row.get("bar") is not None}
    assert {name for name, row in barred.items() if not row["holds"]} == set()
    assert barred.keys() >= {
        "decision: a picture where one is due", "decision: none where none is due", "asked: what is shown",
        "right: requests", "forced right: requests", "right: dialogues", "right: edits",
        "right: second rounds of edits", "right: frames of stories", "only shown: context picture",
    }  # fmt: skip
    for name in ("right: similar pictures", "right: wishes by keywords", "right: edits", "caption right: edits",
                 "right: wishes by the name in the data",
                 "described: style", "unknown: nothing drawn, and said so", "kept: style of stories"):  # fmt: skip
        assert rows[name]["percent"] == 100, name
    assert rows["right: edits"]["by_pixels"] == 100
    assert rows["only shown: blank picture"]["percent"] == 0
    assert rows["asked: what another picture shows, by chance"]["percent"] < 100
    by_task = {row["Eq. 3 by task"]: row for row in rows.values() if "Eq. 3 by task" in row}
    assert by_task.keys() == {"dialogue", "edit", "similar", "story"}
    assert by_task["edit"]["gate"] == 0.4 and by_task["edit"]["cosine"] == 0.5
    at = [row for row in rows.values() if "edits and similar pictures at the gate" in row]
    assert len(at) == 3 and all(row["drawn"] > 0 for row in at)


def test_a_model_that_refuses_everything_is_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(Refusing(), monkeypatch)
    assert rows["decision: none where none is due"]["percent"] == 100
    assert rows["decision: a picture where one is due"]["percent"] == 0
    for name in ("right: edits", "caption right: requests", "decoder right, from the reply's caption: requests",
                 "right: frames of stories", "asked: what is shown"):  # fmt: skip
        assert rows[name]["percent"] == 0, name
    assert rows["decoder right: requests"]["percent"] == rows["forced right: requests"]["percent"] == 100
    assert not any("Eq. 3 by task" in row for row in rows.values())


def test_a_model_of_another_world_is_refused() -> None:
    small = SimpleNamespace(image_size=32, origin=SimpleNamespace(path="micro"))
    with pytest.raises(UserError, match="pictures have 64 pixels a side, and those of micro 32"):
        measure.measure(small, 10, 1, 0, 4, 8, True)  # type: ignore[arg-type]


def test_rows_have_pixels_beside_the_judge_only_where_both_looked() -> None:
    findings = Findings({"a": [True, False], "b": [True]}, {}, {"a": [True, True]})
    first, second = findings.rows()
    assert first["by_pixels"] == 100.0 and "by_pixels" not in second
    header, *lines = _lines([first, second])
    assert header[-1] == "% by pixels" and [line[-1] for line in lines] == ["100.0", ""]


def test_a_document_gets_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "pocket.md"
    document.write_text("# Before\n\n<!-- measure: begin -->\nformer\n<!-- measure: end -->\nafter\n", encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {"measure": "right: edits", "percent": 40.0, "low": 30.0, "high": 50.0, "n": 9, "bar": 48.5, "holds": False},
        {"Eq. 3 by task": "edit", "n": 9, "gate": 0.4},
    ]
    monkeypatch.setattr("m2chat.commands.measure.load_pipeline", lambda *_: Perfect())
    monkeypatch.setattr("m2chat.world.find_world", lambda *_: SimpleNamespace(measure=lambda *_, **__: rows))
    assert main(["measure", "--world", "emoji", "--into", str(document)]) == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Before\n") and text.endswith("<!-- measure: end -->\nafter\n") and "former" not in text
    assert "| right: edits | 40.0 | 30.0 ... 50.0 | 9 | 48.5       | NO    |" in text
    assert "| edit          | 9 | 0.4  |" in text
    assert main(["measure", "--into", str(tmp_path / "gone.md")]) == 2
    assert "there is no such file" in capsys.readouterr().err
